"""An evaluation on other tasks, called by the training loop."""

import jax
import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax.encoders import loading
from prottrans_jax.training import run_settings


def length_of_a_vector(objective, params, check):
    """A scalar that depends on the parameters, through an encoder made of them."""
    check()
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    encoder = loading.encoder_in_training(objective.model, params, "in training")
    return {"q3": float(np.linalg.norm(encoder.embed("MKTAY")))}


def settings(tmp_path, **changes):
    return trainer_cases.arguments(
        tmp_path,
        evaluation_period=2,
        evaluation_downstream=length_of_a_vector,
        evaluation_downstream_period=4,
        **changes,
    )


def test_its_metrics_are_in_the_log_at_their_steps_and_the_run_has_the_same_bits(
    tmp_path,
):
    arguments = settings(tmp_path / "with")
    summary = runs.train(**arguments)
    logged = {
        line["step"]: line["downstream/q3"]
        for line in trainer_cases.log(arguments)
        if "downstream/q3" in line
    }
    # Steps of its period, and the last one.
    assert list(logged) == [4, 6] and logged[4] != logged[6]
    assert summary.evaluation["downstream"] == {"q3": logged[6]}
    plain = trainer_cases.arguments(tmp_path / "without", evaluation_period=2)
    runs.train(**plain)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(arguments), trainer_cases.final_state(plain)
    )


def test_a_resumed_run_logs_the_same_metrics(tmp_path):
    unbroken = settings(tmp_path / "unbroken")
    runs.train(**unbroken)
    broken = settings(tmp_path / "broken")
    with pytest.raises(trainer_cases.EndOfRunError):
        data = trainer_cases.Batches(broken_at=5)
        runs.train(**broken | {"train_data": data})
    runs.train(**broken)
    assert trainer_cases.log(broken) == trainer_cases.log(unbroken)


def test_its_period_must_be_one_of_the_evaluation():
    with pytest.raises(ValueError, match="downstream_period=10 is no multiple"):
        run_settings.Evaluation(
            period=4, downstream=length_of_a_vector, downstream_period=10
        )
