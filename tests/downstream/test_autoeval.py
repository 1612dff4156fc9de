"""Heads trained and tested on small labelled files, with intervals and controls."""

import json
import shutil

import numpy as np
import pytest

from cases import embed_cases
from prottrans_jax import cli
from prottrans_jax.downstream import (
    autoeval,
    evaluation_data,
    evaluation_sets,
    in_training,
)
from prottrans_jax.encoders import controls

SETTINGS = autoeval.Settings(epochs=8, batch_size=9, learning_rate=0.05, resamples=50)


def write_structures(folder, seed=0, lengths=(20, 33)):
    """Proteins in which K and L are helix, V and I strand, all others coil."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    letters = np.array(list("KLVIGPS"))
    state = dict(zip("KLVIGPS", "HHEECCC", strict=True))
    for name, number in (
        ("netsurfp2_train.jsonl", 30),
        ("netsurfp2_val.jsonl", 9),
        ("casp12.jsonl", 11),
    ):
        with open(folder / name, "w") as file:
            for index in range(number):
                sequence = "".join(random.choice(letters, random.integers(*lengths)))
                record = {"id": f"{name}{index}", "sequence": sequence}
                record |= {"q3": "".join(map(state.get, sequence))}
                record |= {"mask": "1" * len(sequence), "split": name[:5]}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return embed_cases.make_model(tmp_path_factory.mktemp("models") / "tiny_t5", seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("autoeval")
    data = write_structures(root / "data")
    told = []
    run = autoeval.Run(root / "run", data, SETTINGS, tell=told.append)
    chosen = evaluation_sets.choose(["q3", "q10"])
    return run, autoeval.evaluate(run, [controls.one_hot()], chosen), told


def test_a_head_learns_what_the_vectors_determine(finished):
    _, (result, _), _ = finished
    casp12 = {test["name"]: test for test in result["tests"]}["CASP12"]
    accuracy = casp12["metrics"]["accuracy"]
    assert casp12["proteins"] == 11 and accuracy["value"] > 0.95
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_an_evaluation_without_data_and_a_test_set_without_file_are_named(finished):
    _, (result, left_out), told = finished
    assert left_out["evaluation"] == "q10" and "deeploc_train" in left_out["missing"]
    assert any("TS115: No file" in note for note in result["notes"])
    assert any(line.startswith("q10: left out") for line in told)


def test_what_is_done_is_not_computed_again(finished, monkeypatch):
    run, (result, _), _ = finished
    monkeypatch.setattr(autoeval.head_fitting, "fit", None)
    again = autoeval.evaluate(run, [controls.one_hot()], evaluation_sets.choose(["q3"]))
    assert again == [result]


def test_other_labels_are_another_result(finished, tmp_path):
    run, (result, _), _ = finished
    data = write_structures(tmp_path / "data", seed=1)
    folder = shutil.copytree(run.folder, tmp_path / "run")
    other = autoeval.Run(folder, data, SETTINGS)
    (changed,) = autoeval.evaluate(
        other, [controls.one_hot()], evaluation_sets.choose(["q3"])
    )
    assert changed["tests"] != result["tests"]


def test_a_training_protein_that_is_in_a_test_set_is_left_out(tmp_path):
    data = write_structures(tmp_path)
    with (
        open(data / "casp12.jsonl") as tests,
        open(data / "netsurfp2_train.jsonl", "a") as train,
    ):
        train.write(next(tests).replace("casp12.jsonl0", "copy"))
    evaluation = evaluation_sets.EVALUATIONS["q3"]
    read = evaluation_data.read(evaluation, data, SETTINGS.limits)
    assert len(read.splits["train"].proteins) == 30
    assert len(read.splits["CASP12"].proteins) == 11
    assert any("copy" in note and "1 protein left out" in note for note in read.notes)


def test_limits_of_a_quick_look_are_in_the_notes(tmp_path):
    data = write_structures(tmp_path)
    settings = autoeval.Settings(max_residues=28, max_proteins=10, max_test_proteins=3)
    read = evaluation_data.read(
        evaluation_sets.EVALUATIONS["q3"], data, settings.limits
    )
    sizes = {name: len(split.proteins) for name, split in read.splits.items()}
    assert sizes == {"train": 9, "validation": 1, "CASP12": 3}
    assert all(
        len(protein.residues) <= 28
        for split in read.splits.values()
        for protein in split.proteins
    )
    assert any("over 28 residues left out" in note for note in read.notes)


def test_a_test_set_without_proteins_is_left_out_and_named(tmp_path):
    data = write_structures(tmp_path)
    tests = (data / "casp12.jsonl").read_text().splitlines(keepends=True)
    (data / "casp12.jsonl").write_text(max(tests, key=len))
    settings = autoeval.Settings(max_residues=28)
    read = evaluation_data.read(
        evaluation_sets.EVALUATIONS["q3"], data, settings.limits
    )
    assert set(read.splits) == {"train", "validation"}
    assert "CASP12: no protein is left." in read.notes


def test_an_evaluation_with_long_proteins_only_is_left_out(tmp_path):
    data = write_structures(tmp_path)
    settings = autoeval.Settings(max_residues=7)
    missing = evaluation_data.read(
        evaluation_sets.EVALUATIONS["q3"], data, settings.limits
    )
    assert missing.startswith("No train protein is left.")
    assert "train: 30 proteins over 7 residues left out." in missing


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (("training", "val", "test"), "structure.fasta: secondary_structure_3 has no"),
        (("train", "train", "test"), "has no split val; its splits: test, train"),
        (("train", "val", "val"), "There is no test set."),
    ],
)
def test_an_evaluation_without_one_of_its_splits_is_left_out(tmp_path, splits, words):
    proteins = zip(splits, ("MKTAY", "GSHML", "PRTEI"), strict=True)
    (tmp_path / "secondary_structure.fasta").write_text(
        "".join(f">{x} TARGET=CCHHE SET={split}\n{x}\n" for split, x in proteins)
    )
    evaluation = evaluation_sets.EVALUATIONS["pbc_secondary_structure"]
    assert words in evaluation_data.read(evaluation, tmp_path, SETTINGS.limits)


def test_settings_without_training_are_refused():
    with pytest.raises(ValueError, match="epochs = 0: it must be at least 1"):
        autoeval.Settings(epochs=0)


def test_tasks_without_data_are_named_when_a_training_run_starts(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="q3 is left out: no file below"):
        in_training.DevelopmentEvaluation(str(tmp_path))
    write_structures(tmp_path)
    in_training.DevelopmentEvaluation(str(tmp_path))
    assert "q10 is left out" in caplog.text and "q3" not in caplog.text


def test_the_command_prints_the_table_with_controls(tmp_path, model_folder, capsys):
    data = write_structures(tmp_path / "data", lengths=(24, 25))
    command = ["autoeval", "-m", str(model_folder), "--data", str(data)]
    command += ["-o", str(tmp_path / "run"), "--tasks", "q3, q8", "--controls"]
    # The files have no labels for Q8.
    assert cli.main([*command, "--epochs", "1"]) == 3
    table, messages = capsys.readouterr()
    assert "left out: q8" in messages
    assert "| Q3 | CASP12 | 11 | accuracy |" in table and ", p = " in table
    assert (tmp_path / "run/results.md").read_text() == table
    results = json.loads((tmp_path / "run/results.json").read_text())["results"]
    assert results[0]["encoder"] == "tiny_t5" and len(results) == 4


def test_a_folder_without_data_is_a_mistake_in_one_line(tmp_path, model_folder, capsys):
    command = ["autoeval", "-m", str(model_folder), "--data", str(tmp_path)]
    assert cli.main([*command, "-o", str(tmp_path / "run"), "--tasks", "q2"]) == 2
    assert "no evaluation has data below" in capsys.readouterr().err
