"""When a model directory holds another run."""

import dataclasses
import functools

from prottrans_jax import differences
from prottrans_jax.checkpoints import run_identity
from prottrans_jax.layers import compute
from prottrans_jax.models import t5
from prottrans_jax.optimizers import schedules


def _config(**changes):
    sizes = dict(
        vocab_size=128,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=3,
        head_dim=4,
        d_model=5,
        d_ff=7,
    )
    return t5.T5Config(**(sizes | changes))


def test_nested_sizes_are_named_with_both_values():
    before = run_identity.identity(model=t5.T5(_config()), seed=1)
    now = run_identity.identity(model=t5.T5(_config(d_ff=11)), seed=1)
    assert differences.lines(before, now) == ["model.config.d_ff: 7 -> 11"]


def test_how_a_step_is_computed_is_not_part_of_a_run():
    other = compute.ComputeConfig(remat_policy="full", dtype="bfloat16")
    before = run_identity.identity(model=t5.T5(_config()))
    now = run_identity.identity(model=t5.T5(_config(), other))
    assert not differences.lines(before, now)


def test_types_in_an_identity_of_an_earlier_version_are_not_compared():
    now = run_identity.identity(model=t5.T5(_config()))
    former = {
        "model.config.dtype": "dtype(bfloat16)",
        "model.config.param_dtype": "dtype('float32')",
        "model.config.scan_layers": "True",
    }
    saved = {"identity": {**now, **former, "optimizer.dtype": "float32"}}
    found = run_identity.of_checkpoint(saved)
    assert found == {**now, "optimizer.dtype": "float32"}


def test_functions_are_told_apart_by_their_arguments():
    def schedule(step, peak):
        return peak

    before = run_identity.identity(lr=functools.partial(schedule, peak=0.1))
    now = run_identity.identity(lr=functools.partial(schedule, peak=0.2))
    assert differences.lines(before, now) == ["lr.peak: 0.1 -> 0.2"]


def test_schedules_are_told_apart_by_the_numbers_they_were_made_of():
    before = run_identity.identity(lr=schedules.inverse_sqrt(0.01, 30))
    now = run_identity.identity(lr=schedules.inverse_sqrt(0.01, 50))
    assert differences.lines(before, now) == ["lr.warmup_steps: 30 -> 50"]


def test_identity_does_not_depend_on_the_process():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        function: object

    (printed,) = {run_identity.identity(h=Holder(_config))["h.function"]}
    assert " at 0x" not in printed
