"""The best validation metric, early stopping, and rows of several lengths."""

import json

import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax.checkpoints import manifests
from prottrans_jax.files import paths
from prottrans_jax.training import best_steps, run_settings


def _follow(values, **settings):
    best = best_steps.BestStep(run_settings.Best(metric="valid/x", **settings))
    for step, value in enumerate(values, start=1):
        best.evaluated(step, {"valid": {"x": value}})
        if best.is_exhausted:
            return best.step, step
    return best.step, None


def test_first_of_equal_values_is_the_best():
    assert _follow([3.0, 2.0, 2.0, float("nan"), 2.5]) == (2, None)
    assert _follow([3.0, 2.0, 5.0, 5.0], mode="max") == (3, None)


def test_run_is_exhausted_after_patience_evaluations_without_a_better_one():
    assert _follow([3.0, 4.0, 2.0, 2.5, 2.0, 1.0], patience=2) == (3, 5)


def test_state_goes_on_where_it_was_saved():
    settings = run_settings.Best(metric="valid/x", patience=2)
    first = best_steps.BestStep(settings)
    first.evaluated(4, {"valid": {"x": 1.0}})
    first.evaluated(8, {"valid": {"x": 1.5}})
    second = best_steps.BestStep(settings, json.loads(json.dumps(first.state())))
    second.evaluated(12, {"valid": {"x": 1.25}})
    assert second.is_exhausted and second.step == 4


def test_unknown_metric_is_refused_with_those_that_there_are():
    best = best_steps.BestStep(run_settings.Best(metric="valid/f1"))
    with pytest.raises(ValueError, match=r"'valid/f1' .* There are: valid/loss"):
        best.evaluated(1, {"valid": {"loss": 1.0}})


def test_run_without_improvement_ends_early_and_keeps_its_best_checkpoint(tmp_path):
    arguments = trainer_cases.arguments(
        tmp_path,
        total_steps=20,
        evaluation_period=2,
        checkpoints_period=50,
        checkpoints_keep=1,
        # Entropy of the targets does not fall: the first evaluation stays the best.
        best_metric="validation/unigram_entropy",
        best_patience=3,
    )
    summary = runs.train(**arguments)
    assert (summary.step, summary.best_step, summary.exit_code) == (8, 2, 0)
    folder = paths.place(arguments["model_dir"], "model_dir") / "checkpoints"
    assert manifests.committed(folder) == [2, 8]
    # The same command has nothing left to do.
    again = runs.train(**arguments)
    assert (again.step, again.best_step) == (8, 2)


class _TwoLengths(trainer_cases.Batches):
    """Every second batch is half as long."""

    def batch(self, index, rows=slice(None)):
        features = super().batch(index, rows)
        length = trainer_cases.LENGTH // (1 + index % 2)
        return {name: np.array(x[:, :length]) for name, x in features.items()}


def test_run_with_rows_of_two_lengths_resumes_with_the_same_bits(tmp_path):
    changes = {"train_data": _TwoLengths(), "total_steps": 5}
    whole = trainer_cases.arguments(tmp_path / "whole", **changes)
    runs.train(**whole)
    parts = trainer_cases.arguments(tmp_path / "parts", **changes)
    broken = parts | {"train_data": _TwoLengths(broken_at=3)}
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**broken)
    runs.train(**parts)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(parts)
    )
