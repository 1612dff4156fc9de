"""Training of heads on vectors of the one-hot encoder, and prediction with them."""

import json

import h5py
import jax
import numpy as np
import pytest

from prottrans_jax.distributed import stopping
from prottrans_jax.downstream import (
    finetuning,
    head_folders,
    heads,
    labelled,
    predicting,
)
from prottrans_jax.embed import settings
from prottrans_jax.encoders import controls
from prottrans_jax.files import ownership

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
RESIDUES = labelled.Task("polarity", "residue", ("p", "n"), "accuracy", "made up")
PROTEINS = labelled.Task("length", "protein", (), "spearman", "made up")


def _sequence(rng):
    return "".join(rng.choice(list(LETTERS), rng.integers(4, 30)))


def _data(task=RESIDUES, number=60, splits=("train", "train", "val")):
    """Residues: polar or not, a function of the residue. Proteins: share of A."""
    rng = np.random.default_rng(0)
    proteins = []
    for index in range(number):
        residues = _sequence(rng)
        if task.level == "residue":
            labels = np.array([letter in "DEKRHNQST" for letter in residues], np.int32)
        else:
            labels = np.array(residues.count("A") / len(residues), np.float32)
        split = splits[index % len(splits)]
        proteins.append(
            labelled.LabelledProtein(f"P{index}", residues, labels, None, split, "")
        )
    return labelled.LabelledSet(task, proteins)


def _train(folder, data=None, **options):
    options = {
        "head": "cnn",
        "epochs": 3,
        "batch_size": 8,
        "num_devices": 1,
        "encoder": controls.one_hot(),
        **options,
    }
    return finetuning.finetune(
        model_dir=str(folder), data=data or _data(), model="one_hot", **options
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, _train(folder, head=heads.Cnn(2, width=1), epochs=12)


def test_head_learns_a_label_that_the_residue_determines(run):
    _, result = run
    accuracy = result.scores["validation"]["accuracy"]
    assert accuracy.value > 0.95 and accuracy.num_proteins == 20
    assert "items with the right class" in "".join(finetuning.summary_lines(result))


def test_head_of_a_folder_predicts_as_the_trained_one(run):
    folder, result = run
    loaded = head_folders.load(folder)
    assert loaded.tasks == (RESIDUES,) and loaded.encoder.d_model == 21
    x, mask = np.eye(21, dtype="f4")[None], np.ones((1, 21), bool)
    np.testing.assert_array_equal(loaded(x, mask), result.head(x, mask))
    np.testing.assert_allclose(loaded(x, mask).sum(-1), 1, rtol=1e-6)


def test_stopped_run_ends_with_the_bits_of_an_unbroken_one(tmp_path, monkeypatch):
    whole = _train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "should_stop", lambda _, step: step == 7)
        assert _train(tmp_path / "parts").head is None
    parts = _train(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.head.params, parts.head.params)
    assert whole.scores == parts.scores


def test_proteins_are_held_out_where_no_split_is_for_validation():
    data = _data(splits=("all",), number=200)
    splits = finetuning.with_splits(data)
    assert 10 <= len(splits["validation"].proteins) <= 30
    names = {name: {p.id for p in one.proteins} for name, one in splits.items()}
    assert not names["train"] & names["validation"]
    # The choice depends on the residues, not on the order or number of proteins.
    fewer = labelled.LabelledSet(data.task, data.proteins[100:])
    again = {p.id for p in finetuning.with_splits(fewer)["validation"].proteins}
    assert again == names["validation"] & {p.id for p in fewer.proteins}


def test_too_few_proteins_to_hold_some_out_are_counted():
    data = _data(splits=("all",), number=2)
    with pytest.raises(ValueError, match="validation', and 2 training proteins cannot"):
        finetuning.with_splits(data)


def test_vectors_in_a_bucket_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="vectors"):
        _train("gs://bucket/run")
    assert not list(tmp_path.iterdir())


def test_data_without_a_training_split_are_refused_with_their_splits():
    with pytest.raises(ValueError, match="splits are 'casp12'"):
        finetuning.with_splits(_data(splits=("casp12",)))


def test_head_of_proteins_needs_one_vector_each_and_learns_a_number(tmp_path):
    result = _train(tmp_path, data=_data(PROTEINS), head="linear", epochs=1, patience=1)
    with np.load(tmp_path / "vectors.npz") as vectors:
        assert {vectors[key].shape for key in vectors.files} == {(21,)}
    assert list(result.scores["validation"]) == ["spearman"]
    assert abs(result.scores["validation"]["spearman"].value) <= 1


FASTA = ">sp|P1|X first protein\nMKTAYIAKQR\n>second\nDEDE\n"


def _predict(run, tmp_path, name, text=FASTA, **options):
    (tmp_path / "in.fasta").write_text(text)
    folder, _ = run
    report = predicting.predict(
        controls.one_hot(),
        head_folders.load(folder),
        [tmp_path / "in.fasta"],
        tmp_path / name,
        settings.Options(**options),
    )
    return tmp_path / name, report


def _expected(run, residues):
    vectors = controls.one_hot().embed(residues)[None]
    return np.asarray(run[1].head(vectors, np.ones((1, len(residues)), bool)))[0]


def test_hdf5_holds_the_probabilities(run, tmp_path):
    path, _ = _predict(run, tmp_path, "out.h5")
    with h5py.File(path) as file:
        assert sorted(file) == ["P1", "second"]
        np.testing.assert_allclose(
            file["P1"][()], _expected(run, "MKTAYIAKQR"), atol=1e-6
        )


def test_tsv_has_a_line_for_each_residue_in_the_order_of_the_input(run, tmp_path):
    path, _ = _predict(run, tmp_path, "out.tsv")
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert lines[0] == ["id", "position", "residue", "prediction", "p", "n"]
    assert [line[:3] for line in lines[1:3]] == [
        ["sp|P1|X", "1", "M"],
        ["sp|P1|X", "2", "K"],
    ]
    expected = _expected(run, "DEDE")
    assert [line[0] for line in lines[11:]] == ["second"] * 4
    for line, (p, n) in zip(lines[11:], expected, strict=True):
        assert line[3] == ("p" if p > n else "n")
        assert [float(x) for x in line[4:]] == pytest.approx([p, n], abs=1e-4)


def test_json_lines_and_annotated_fasta_hold_the_classes(run, tmp_path):
    path, _ = _predict(run, tmp_path, "out.jsonl")
    first, second = map(json.loads, path.read_text().splitlines())
    classes = "".join("pn"[i] for i in _expected(run, "MKTAYIAKQR").argmax(1))
    assert first["sequence"] == "MKTAYIAKQR" and first["polarity"] == classes
    assert np.shape(second["polarity_probabilities"]) == (4, 2)
    path, _ = _predict(run, tmp_path, "out.fasta")
    lines = path.read_text().splitlines()
    assert lines[:3] == [">sp|P1|X first protein", "MKTAYIAKQR", classes]


def test_a_longer_input_computes_only_new_proteins(run, tmp_path):
    _predict(run, tmp_path, "out.tsv")
    path, report = _predict(run, tmp_path, "out.tsv", text=FASTA + ">third\nAC\n")
    assert (report.embedded, report.reused) == (1, 2)
    assert path.read_text().splitlines()[-1].startswith("third\t2\tC\t")


def test_proteins_over_the_limit_are_left_out_and_named(run, tmp_path):
    path, report = _predict(run, tmp_path, "out.tsv", max_length=5, long="skip")
    assert [skipped.name for skipped in report.skipped] == ["sp|P1|X"]
    assert "sp|P1|X" not in path.read_text()
    path, _ = _predict(run, tmp_path, "cut.tsv", max_length=5, long="truncate")
    assert len(path.read_text().splitlines()) == 1 + 5 + 4


def test_file_of_the_users_is_not_replaced(run, tmp_path):
    (tmp_path / "out.tsv").write_text("mine")
    with pytest.raises(ownership.ForeignError, match=r"out\.tsv exists"):
        _predict(run, tmp_path, "out.tsv")
    assert (tmp_path / "out.tsv").read_text() == "mine"


def test_another_encoder_is_refused_by_name(run):
    other = controls.one_hot()
    object.__setattr__(other, "fingerprint", "0" * 64)
    object.__setattr__(other, "name", "other")
    with pytest.raises(ValueError, match=r"vectors of 'one_hot' .* not of 'other'"):
        predicting.PredictingEncoder(other, head_folders.load(run[0]))


def test_head_of_proteins_predicts_one_row_each_also_from_pieces(tmp_path):
    _train(tmp_path / "run", data=_data(PROTEINS), head="fnn", epochs=1)
    run = (tmp_path / "run", None)
    path, _ = _predict(run, tmp_path, "out.tsv")
    assert [line.count("\t") for line in path.read_text().splitlines()] == [1, 1, 1]
    _predict(run, tmp_path, "cut.tsv", max_length=5, long="chunk")
