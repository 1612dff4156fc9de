"""Tasks whose rows cannot be computed from lengths, or do not mix, are refused."""

import dataclasses

import pytest
import seqio
import tensorflow as tf

from cases.row_loader_cases import FolderSource, assert_equal, make_loader, make_task
from prottrans_jax.data.records import corpora
from prottrans_jax.data.seqio import preprocessors


def test_rates_by_number_of_records_take_the_given_data_dir(toy_corpus, monkeypatch):
    monkeypatch.delenv(corpora.DATA_DIR, raising=False)
    names = ["fasta_iid_denoise", "fasta_iid_denoise_all_ids"]
    rate = seqio.mixing_rate_num_examples
    loader = make_loader(
        toy_corpus, task=seqio.Mixture("by_size", [(n, rate) for n in names])
    )
    assert [c["rate"] for c in loader.state(0)["components"]] == ["301", "301"]


def test_task_that_is_not_of_records_is_refused(toy_corpus):
    task = seqio.Task(
        "not_records",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: None, splits=["train"]
        ),
        preprocessors=[],
        output_features={},
    )
    with pytest.raises(ValueError, match=r"not_records .*prottrans_jax.prepare"):
        make_loader(toy_corpus, task=task)


def _reversed(dataset):
    return dataset.map(
        lambda e: {**e, "sequence": tf.strings.reduce_join(
            tf.reverse(tf.strings.bytes_split(e["sequence"]), [0]))}
    )  # fmt: skip


@pytest.mark.parametrize("place", [0, 1, 2])
def test_task_with_preprocessors_of_its_own_is_refused(toy_corpus, place):
    corrupt = preprocessors.iid_denoise()
    steps = preprocessors.pretraining(corrupt)
    steps.insert(place, _reversed)
    task = seqio.Task(
        "reversed_proteins",
        source=FolderSource(toy_corpus),
        preprocessors=steps,
        output_features=preprocessors.output_features(corrupt),
    )
    with pytest.raises(
        ValueError, match=r"task reversed_proteins has the preprocessors .*_reversed"
    ):
        make_loader(None, task=task)


def test_task_without_tokenize_is_refused(toy_corpus):
    corrupt = preprocessors.iid_denoise()
    task = seqio.Task(
        "untokenized",
        source=FolderSource(toy_corpus),
        preprocessors=[corrupt],
        output_features=preprocessors.output_features(corrupt),
    )
    with pytest.raises(ValueError, match="has the preprocessors Corrupt"):
        make_loader(None, task=task)


def test_task_that_crops_needs_a_loader_that_crops(toy_corpus):
    corrupt = dataclasses.replace(preprocessors.iid_denoise(), long_sequences="crop")
    task = make_task(toy_corpus, "cropped", corrupt)
    with pytest.raises(ValueError, match="Pass long_sequences='crop' to RowLoader"):
        make_loader(None, task=task)
    cropped = make_loader(None, task=task, long_sequences="crop").batch(0)
    assert_equal(cropped, make_loader(toy_corpus, long_sequences="crop").batch(0))


def test_tasks_of_other_families_do_not_mix(toy_corpus):
    tasks = [("fasta_masked_lm", 1), ("fasta_ngram_masked_lm", 1)]
    with pytest.raises(ValueError, match=r"\(ProtBert\) and .* \(ProtAlbert\) are for"):
        make_loader(
            toy_corpus,
            task=seqio.Mixture("families", tasks),
            feature_lengths={"inputs": 30},
        )


@pytest.mark.parametrize("order", [1, -1])
def test_tasks_with_and_without_lanes_do_not_mix(toy_corpus, order):
    tasks = [("fasta_permutation_lm", 1), ("fasta_permutation_lm_lanes", 1)][::order]
    with pytest.raises(ValueError, match="task fasta_permutation_lm_lanes reads"):
        make_loader(
            toy_corpus,
            task=seqio.Mixture("lanes", tasks),
            feature_lengths={"inputs": 30},
        )
