"""A run goes on with the whole state of another one."""

import dataclasses
import shutil

import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax.checkpoints import manifests
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising
from prottrans_jax.optimizers import algorithms, schedules


def _continued(tmp_path, both=(), **changes):
    """A first run of 3 steps, and arguments of a run that goes on from it to step 8."""
    first = trainer_cases.arguments(tmp_path / "first", total_steps=3) | dict(both)
    runs.train(**first)
    second = trainer_cases.arguments(
        tmp_path / "second", train_data=trainer_cases.Batches(seed=8), total_steps=8
    )
    start = {"start_continue_from": first["model_dir"]}
    return first, second | start | dict(both) | changes


def test_continued_run_goes_on_with_the_schedule_on_the_first_rows(tmp_path):
    schedule = schedules.InverseSqrt(0.01, 2)
    both = {"optimizer": algorithms.AdamW(learning_rate=schedule), "logs_period": 1}
    _, second = _continued(tmp_path, both)
    data, taken = second["train_data"], set()
    batch = data.batch
    data.batch = lambda index, rows: taken.add(index) or batch(index, rows)
    assert runs.train(**second).step == 8
    assert taken == {0, 1, 2, 3, 4}
    rates = {
        line["step"]: line["train/learning_rate"]
        for line in trainer_cases.log(second)
        if "train/learning_rate" in line
    }
    # The update to step n uses the rate at n - 1, counted from the first run's start.
    expected = {step: 0.01 * np.sqrt(2 / (step - 1)) for step in range(4, 9)}
    assert rates == pytest.approx(expected)


def test_first_state_of_a_continued_run_is_the_last_of_the_other(tmp_path):
    first, second = _continued(tmp_path, checkpoints_period=9)
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(
            **second | {"train_data": trainer_cases.Batches(seed=8, broken_at=1)}
        )
    step, state = trainer_cases.final_state(second)
    assert step == 3
    trainer_cases.assert_same_bits(state, trainer_cases.final_state(first)[1])


def test_continued_run_in_two_parts_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    first, whole = _continued(tmp_path)
    runs.train(**whole)
    parts = whole | {"model_dir": str(tmp_path / "parts")}
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**parts | {"train_data": trainer_cases.Batches(seed=8, broken_at=3)})
    shutil.rmtree(first["model_dir"])  # A resumed run does not need it.
    runs.train(**parts)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(parts)
    )
    assert trainer_cases.log(whole) == trainer_cases.log(parts)


def test_run_that_continues_another_one_is_another_run(tmp_path):
    first, second = _continued(tmp_path)
    runs.train(**second)
    elsewhere = second | {"start_continue_from": str(tmp_path / "elsewhere")}
    with pytest.raises(ValueError, match=r"continue_from: .*first.* -> .*elsewhere"):
        runs.train(**elsewhere)
    first["start_continue_from"] = second["model_dir"]
    with pytest.raises(ValueError, match=r"continue_from: \(absent\) -> .*second"):
        runs.train(**first)


def test_one_step_of_another_run_may_be_continued(tmp_path):
    first, second = _continued(tmp_path)
    second["start_continue_from"] = first["model_dir"] + "/checkpoints/2"
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**second | {"train_data": trainer_cases.Batches(broken_at=1)})
    assert trainer_cases.final_state(second)[0] == 2


def test_damaged_source_is_not_replaced_by_an_earlier_step(tmp_path):
    _, second = _continued(tmp_path)
    (tmp_path / "first/run/checkpoints/3/metadata.json").write_text("{}")
    with pytest.raises(manifests.CheckpointError, match=r"continue_from=.*damaged"):
        runs.train(**second)


def test_missing_source_is_named(tmp_path):
    arguments = trainer_cases.arguments(
        tmp_path, start_continue_from=str(tmp_path / "none")
    )
    with pytest.raises(manifests.CheckpointError, match=r"continue_from=.*none"):
        runs.train(**arguments)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("objective", {"d_ff": 32}, r"objective\..*d_ff.*24 -> 32"),
        ("objective", {"dropout_rate": 0.2}, r"dropout_rate.*0\.1 -> 0\.2"),
        ("optimizer", algorithms.AdamW(learning_rate=0.5), r"0\.01 -> 0\.5"),
        ("optimizer", algorithms.Adafactor(learning_rate=0.5), "AdamW -> Adafactor"),
    ],
)
def test_source_with_another_model_or_optimizer_is_refused(tmp_path, part, value, said):
    _, second = _continued(tmp_path)
    if part == "objective":
        config = dataclasses.replace(second["objective"].model.config, **value)
        value = denoising.Denoising(t5.T5(config))
    with pytest.raises(ValueError, match=said):
        runs.train(**second | {part: value})


def test_continued_run_needs_steps_beyond_those_of_the_other(tmp_path):
    _, second = _continued(tmp_path, total_steps=3)
    with pytest.raises(ValueError, match=r"at step 3, and total_steps=3 .*TRAIN_STEPS"):
        runs.train(**second)


def test_parameters_and_whole_state_from_elsewhere_at_once_are_refused(tmp_path):
    starts = {"start_init_from": "/a", "start_continue_from": "/b"}
    with pytest.raises(ValueError, match=r"INITIAL_CHECKPOINT_PATH.*CONTINUE_FROM"):
        runs.train(**trainer_cases.arguments(tmp_path, **starts))
