"""Learning rates against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.optimizers import schedules


def _rates(schedule, *steps):
    return np.array([schedule(step) for step in steps])


def test_t5_pretraining_is_one_over_sqrt_of_step_from_ten_thousand_on():
    got = _rates(schedules.InverseSqrt(0.01, 10_000), 0, 9_999, 10_000, 40_000, 10**6)
    np.testing.assert_allclose(got, [0.01, 0.01, 0.01, 0.005, 0.001], rtol=1e-6)


def test_inverse_sqrt_can_rise_linearly_first():
    got = _rates(schedules.InverseSqrt(0.2, 4, warmup="linear"), 0, 1, 4, 16)
    np.testing.assert_allclose(got, [0.0, 0.05, 0.2, 0.1], rtol=1e-6)


def test_inverse_sqrt_counts_on_from_another_run():
    got = _rates(schedules.InverseSqrt(0.01, 10_000, first_step=40_000), 0, 120_000)
    np.testing.assert_allclose(got, [0.005, 0.0025], rtol=1e-6)


def test_linear_warmup_and_decay_meet_at_the_peak():
    schedule = schedules.LinearWarmupLinearDecay(0.6, warmup_steps=3, total_steps=9)
    np.testing.assert_allclose(
        _rates(schedule, 0, 1, 3, 5, 9, 12), [0, 0.2, 0.6, 0.4, 0, 0], atol=1e-7
    )
    straight = schedules.LinearWarmupLinearDecay(0.6, warmup_steps=0, total_steps=4)
    np.testing.assert_allclose(_rates(straight, 0, 1, 4), [0.6, 0.45, 0], atol=1e-7)


def test_constant_schedule_has_one_rate_at_every_step():
    np.testing.assert_allclose(_rates(schedules.Constant(0.3), 0, 7), [0.3, 0.3])


@pytest.mark.parametrize(
    ("arguments", "step", "expected"),
    [
        # T5's pre-training as its gin files have it.
        (
            {
                "factors": "constant * rsqrt_decay",
                "base_learning_rate": 1.0,
                "warmup_steps": 10_000,
            },
            40_000,
            0.005,
        ),
        ({"warmup_steps": 4, "base_learning_rate": 0.5}, 2, 0.5 * 0.5 / 2),
        ({"factors": "rsqrt_normalized_decay", "warmup_steps": 9}, 36, 0.5),
        (
            {"factors": "constant*decay_every", "steps_per_decay": 10},
            25,
            0.5 * 0.25,
        ),
        (
            {"factors": "cosine_decay", "warmup_steps": 5, "steps_per_cycle": 40},
            15,
            0.5 * (1 + np.cos(np.pi / 4)),
        ),
        (
            {
                "factors": "linear_decay",
                "warmup_steps": 10,
                "base_learning_rate": 0.2,
                "decay_factor": 0.02,
            },
            35,
            0.2 * 0.5,
        ),
        # Decayed below nothing: held at the least learning rate.
        ({"factors": "linear_decay", "warmup_steps": 10}, 500, 1e-8),
        (
            {"factors": "linear_warmup", "warmup_steps": 10, "step_offset": 100},
            105,
            0.5,
        ),
    ],
)
def test_factors_multiply_as_in_t5x(arguments, step, expected):
    np.testing.assert_allclose(
        schedules.ByFactors(**arguments)(step), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Constant(0.1),
        schedules.InverseSqrt(0.1, 5, warmup="linear"),
        schedules.LinearWarmupLinearDecay(0.1, 3, 20),
        schedules.ByFactors(warmup_steps=3),
    ],
)
def test_traced_steps_give_the_same_rates(schedule):
    steps = np.arange(0, 30, 7)
    traced = [jax.jit(schedule)(jnp.int32(step)) for step in steps]
    assert {rate.dtype for rate in traced} == {jnp.dtype("float32")}
    np.testing.assert_allclose(traced, _rates(schedule, *steps), rtol=1e-6)


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="total_steps=5"):
        schedules.LinearWarmupLinearDecay(0.1, warmup_steps=5, total_steps=5)
    with pytest.raises(ValueError, match="'cold'"):
        schedules.InverseSqrt(0.1, 5, warmup="cold")
    with pytest.raises(ValueError, match="warmup_steps=0"):
        schedules.InverseSqrt(0.1, 0)
    with pytest.raises(ValueError, match=r"'rsqrt'.*rsqrt_decay"):
        schedules.ByFactors("constant * rsqrt")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: schedules.Constant(-1.0), r"learning_rate=-1\.0: .* at least 0"),
        (lambda: schedules.InverseSqrt(-0.1, 10), r"peak=-0\.1: .* at least 0"),
        (lambda: schedules.LinearWarmupLinearDecay(-1, 1, 9), "peak=-1: .* least 0"),
        (lambda: schedules.ByFactors(base_learning_rate=-1), "base_learning_rate=-1"),
        (lambda: schedules.ByFactors(warmup_steps=0), "warmup_steps=0: .* least 1"),
        (
            lambda: schedules.ByFactors("cosine_decay", steps_per_cycle=0),
            "steps_per_cycle=0: .* at least 1",
        ),
    ],
)
def test_number_that_gives_no_learning_rate_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
