"""Missing inputs are named; pairs of id and sequence are checked as FASTA is."""

import pytest

from cases import record_cases
from prottrans_jax.data.records import input_sources, preparing, store
from prottrans_jax.proteins import fasta_problems


def test_missing_input_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere.fasta: cannot be read: No such file"
    ):
        input_sources.of_fasta("nowhere.fasta")


def test_examples_of_any_source_are_checked_as_fasta_is(tmp_path):
    examples = [("two words", b"MKV"), ("b", b"AC\nD"), ("c", b"*")]
    source = input_sources.of_examples("mine/train", examples, "train")
    with pytest.raises(
        fasta_problems.FastaError, match=r"mine/train:5: .*'c'.* no residues"
    ):
        preparing.prepare([source], tmp_path / "out", name="x")
    report = preparing.prepare(
        [source], tmp_path / "out", name="x", options=preparing.Options(on_bad="skip")
    )
    kept = record_cases.iterate(store.open(tmp_path / "out").split("train"))
    assert sorted(kept) == [("b", b"ACD"), ("two_words", b"MKV")]
    assert report.num_bad == 1
