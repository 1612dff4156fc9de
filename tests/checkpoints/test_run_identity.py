"""The configuration that identifies a run, as data."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax import differences
from prottrans_jax.checkpoints import run_identity
from prottrans_jax.layers import compute
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising
from prottrans_jax.optimizers import algorithms, schedules


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


PLAIN = compute.ComputeConfig()


def _run(config=None, how=None, **changes):
    parts = dict(
        objective=denoising.Denoising(t5.T5(config or _config(), how or PLAIN)),
        optimizer=algorithms.Adafactor(learning_rate=schedules.InverseSqrt(0.01, 30)),
        seed=1,
        batch_size=8,
        init_from=None,
    )
    return run_identity.identity(**(parts | changes))


def test_same_configuration_is_equal_after_a_round_trip_through_json():
    saved = json.loads(json.dumps(_run()))
    assert saved == _run()
    assert not differences.lines(saved, _run())


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (_run(_config(d_ff=11)), "objective.model.config.d_ff: 7 -> 11"),
        (
            _run(_config(mlp_activations=("gelu", "linear"))),
            "objective.model.config.mlp_activations: relu -> gelu, linear",
        ),
        (_run(_config(tie_embeddings=False)), "objective.model.config.tie_embeddings"),
        (
            _run(objective=denoising.Denoising(t5.T5(_config()), z_loss=0.5)),
            "objective.z_loss: 0.0 -> 0.5",
        ),
        (
            _run(
                optimizer=algorithms.Adafactor(
                    learning_rate=schedules.InverseSqrt(0.01, 50)
                )
            ),
            "optimizer.learning_rate.warmup_steps: 30 -> 50",
        ),
        (
            _run(optimizer=algorithms.Adafactor(learning_rate=0.5)),
            "optimizer.learning_rate: InverseSqrt(first_step=0, peak=0.01, "
            "warmup=hold, warmup_steps=30) -> 0.5",
        ),
        (
            _run(
                optimizer=algorithms.Adafactor(
                    learning_rate=schedules.InverseSqrt(0.01, 30),
                    dtype_momentum="bfloat16",
                )
            ),
            "optimizer.dtype_momentum: float32 -> bfloat16",
        ),
        (_run(seed=2), "seed: 1 -> 2"),
        (_run(init_from="hf:prot_bert"), "init_from: none -> hf:prot_bert"),
    ],
)
def test_changed_setting_is_listed_by_its_place(changed, line):
    (listed,) = differences.lines(_run(), changed)
    assert listed.startswith(line)


def test_how_a_step_is_computed_is_not_part_of_a_run():
    assert _run() == _run(
        how=compute.ComputeConfig(remat_policy="full", dtype="bfloat16")
    )


@pytest.mark.parametrize("dtype", ["float32", jnp.float32, np.float32, np.dtype("f4")])
def test_a_dtype_is_its_name(dtype):
    assert run_identity.identity(dtype=dtype) == {"dtype": "float32"}


@pytest.mark.parametrize(
    "value", [lambda step: step, functools.partial(int, 3), object(), {1, 2}, b"x"]
)
def test_what_is_not_data_is_refused_with_its_place(value):
    optimizer = Holder([0.1, {"rate": value}])
    with pytest.raises(ValueError, match=r"^optimizer\.settings\.1\.rate="):
        run_identity.identity(optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class Holder:
    settings: object
