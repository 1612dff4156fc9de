"""Checkpoints are evaluated while a run deletes old ones."""

import pathlib
import shutil

import pytest

from cases import runs, trainer_cases
from prottrans_jax.checkpoints import manifests, stored_arrays
from prottrans_jax.training import evaluation


def _evaluations(arguments, **changes):
    names = ("model_dir", "objective", "optimizer", "partitioner", "eval_data")
    chosen = {name: arguments[name] for name in names}
    return evaluation.evaluate_checkpoints(**chosen | changes)


def test_evaluation_beside_a_run_leaves_out_what_was_deleted(tmp_path, caplog):
    arguments = trainer_cases.arguments(
        tmp_path, checkpoints_keep=4, evaluation_period=9
    )
    runs.train(**arguments)
    directory = pathlib.Path(arguments["model_dir"]) / "checkpoints"
    steps = []
    for step, _ in _evaluations(arguments, step="all"):
        steps.append(step)
        shutil.rmtree(directory / "2", ignore_errors=True)
    assert steps == [0, 4, 6]
    assert "Step 2 was deleted by the run and is skipped." in caplog.text
    # What is damaged is an error, after the others.
    trainer_cases.damage_checkpoint(arguments, 4)
    results = _evaluations(arguments, step="all")
    assert next(results)[0] == 0 and next(results)[0] == 6
    with pytest.raises(manifests.CheckpointError, match="4/_METADATA"):
        next(results)


@pytest.mark.parametrize("step", ["all", "2"])
def test_evaluation_of_steps_that_are_all_deleted_meanwhile_is_an_error(
    step, tmp_path, monkeypatch
):
    arguments = trainer_cases.arguments(tmp_path, total_steps=2, checkpoints_keep=1)
    runs.train(**arguments)
    directory = pathlib.Path(arguments["model_dir"]) / "checkpoints"

    def deleted(path, *args, **kwargs):
        shutil.rmtree(directory / "2")
        raise FileNotFoundError(path)

    monkeypatch.setattr(stored_arrays, "read", deleted)
    with pytest.raises(manifests.GoneError, match="the run deleted 2 meanwhile"):
        list(_evaluations(arguments, step=step))


def test_evaluation_of_the_latest_step_takes_a_newer_one_if_it_is_deleted(
    tmp_path, monkeypatch
):
    arguments = trainer_cases.arguments(tmp_path, total_steps=2)
    runs.train(**arguments)
    directory = pathlib.Path(arguments["model_dir"]) / "checkpoints"
    read = stored_arrays.read

    def read_while_the_run_goes_on(path, *args, **kwargs):
        if path.name == "2":
            monkeypatch.setattr(stored_arrays, "read", read)
            runs.train(**arguments | {"total_steps": 4, "checkpoints_keep": 1})
            assert not (directory / "2").exists()
        return read(path, *args, **kwargs)

    monkeypatch.setattr(stored_arrays, "read", read_while_the_run_goes_on)
    assert [step for step, _ in _evaluations(arguments)] == [4]
