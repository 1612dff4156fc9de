"""The denoising objective: normalisation, metrics, FLOPs."""

import functools

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from cases import microbatch_cases
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising

ROWS, LENGTH, VOCAB = 4, 7, 23
CONFIG = t5.T5Config(
    vocab_size=VOCAB,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    dropout_rate=0.2,
)


def make_batch():
    rng = np.random.default_rng(0)
    segments = np.array([[1] * n + [0] * (LENGTH - n) for n in (7, 2, 5, 0)])
    tokens = {
        name: rng.integers(2, VOCAB, (ROWS, LENGTH)).astype(np.int32)
        for name in (
            "encoder_input_tokens",
            "decoder_input_tokens",
            "decoder_target_tokens",
        )
    }
    return tokens | {
        "encoder_segment_ids": segments,
        "decoder_segment_ids": segments,
        "decoder_loss_weights": (segments > 0) * rng.random((ROWS, LENGTH)),
        "decoder_corrupted": rng.integers(0, 3, (ROWS, LENGTH)),
    }


@pytest.fixture(scope="module")
def objective():
    return denoising.Denoising(t5.T5(CONFIG), z_loss=1e-3, label_smoothing=0.1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(t5.init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def test_microbatches_add_up_to_the_batch(objective, params, step):
    # The rows differ in their number of targets; the last has none.
    whole, summed = microbatch_cases.whole_and_summed(
        objective, params, step, make_batch()
    )
    np.testing.assert_allclose(
        summed.normalizers["targets"], whole.normalizers["targets"], rtol=1e-6
    )
    np.testing.assert_allclose(summed.loss, whole.loss, rtol=1e-6)
    for name, metric in whole.metrics.items():
        np.testing.assert_allclose(summed.metrics[name], metric, rtol=1e-5)
    microbatch_cases.assert_close(summed.grads, whole.grads, 1e-6)


def test_metrics_split_the_cross_entropy_by_corruption(objective, params, step):
    batch = make_batch()
    (_, (metrics, carry)), _ = step(
        params, batch, objective.normalizers(jax.device_put(batch))
    )
    assert carry == ()
    arrays = jax.device_put(batch)
    logits = t5.T5(CONFIG).apply(
        {"params": params},
        arrays["encoder_input_tokens"],
        arrays["decoder_input_tokens"],
        encoder_segment_ids=arrays["encoder_segment_ids"],
        decoder_segment_ids=arrays["decoder_segment_ids"],
        deterministic=True,
    )
    logits = np.asarray(logits, np.float64)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    correct = logits.argmax(-1) == targets
    corrupted = batch["decoder_corrupted"]
    expected = {
        "loss": (nll, True),
        "accuracy": (correct, True),
        "masked_loss": (nll, corrupted == 1),
        "substituted_loss": (nll, corrupted == 2),
        "corrupted_loss": (nll, corrupted > 0),
        "corrupted_accuracy": (correct, corrupted > 0),
        "z_loss": (1e-3 * log_z**2, True),
    }
    for name, (value, where) in expected.items():
        total, weight = metrics[name]
        np.testing.assert_allclose(total, (value * weights * where).sum(), rtol=1e-5)
        np.testing.assert_allclose(weight, (weights * where).sum(), rtol=1e-5)


def test_an_empty_batch_has_loss_zero_and_finite_gradients(objective, params, step):
    batch = make_batch()
    for name in (
        "decoder_loss_weights",
        "encoder_segment_ids",
        "decoder_segment_ids",
    ):
        batch[name] = np.zeros_like(batch[name])
    (loss, _), grads = step(
        params, batch, objective.normalizers(jax.device_put(batch)), train=True
    )
    assert loss == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_init_makes_boxed_parameters_from_shapes_alone(objective, params):
    batch = make_batch()
    shapes = {name: x.shape for name, x in batch.items()}
    structs = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.int32) for name, x in batch.items()
    }
    for given in (shapes, structs):
        boxed = jax.eval_shape(
            functools.partial(objective.init, batch_shapes=given), jax.random.key(0)
        )
        names = boxed["encoder"]["layers"]["mlp"]["wi"]["kernel"].names
        assert names == ("layers", "embed", "mlp")
        unboxed = jax.tree.leaves(boxed)
        assert [x.shape for x in unboxed] == [x.shape for x in jax.tree.leaves(params)]


def test_flops_are_those_of_the_traced_products(objective):
    """Counted in the forward pass's own dot products, which XLA cannot hide."""
    config = t5.T5Config(
        vocab_size=2048,  # above the one-hot limit: embedding is a gather
        num_layers=2,
        num_decoder_layers=3,
        num_heads=3,
        head_dim=4,
        d_model=10,
        d_ff=14,
        mlp_activations=("gelu", "linear"),
    )
    inputs, targets = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 6), jnp.int32)
    compute = compute_config.ComputeConfig(scan_layers=False)
    model = t5.T5(config, compute)
    variables = jax.eval_shape(
        lambda: t5.init_params(config, jax.random.key(0), compute)
    )
    jaxpr = jax.make_jaxpr(
        lambda p: model.apply({"params": p}, inputs, targets, deterministic=True)
    )(variables)

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                contracted = equation.params["dimension_numbers"][0][0]
                left = equation.invars[0].aval.shape
                size = np.prod([left[axis] for axis in contracted])
                total += 2 * size * np.prod(equation.outvars[0].aval.shape)
            if equation.primitive.name == "cond":  # one branch a platform
                total += count(equation.params["branches"][-1].jaxpr)
                continue
            for inner in core.jaxprs_in_params(equation.params):
                total += count(inner)
        return total

    # The relative bias: one small product per stack, [heads, buckets, distances].
    bias = 2 * 3 * 32 * ((2 * 8 - 1) + (2 * 6 - 1))
    assert t5.forward_flops(config, 8, 6) == count(jaxpr.jaxpr) - bias
    model = denoising.Denoising(t5.T5(config))
    shapes = {"encoder_input_tokens": (5, 8), "decoder_input_tokens": (5, 6)}
    assert model.flops(shapes) == 15 * t5.forward_flops(config, 8, 6)
