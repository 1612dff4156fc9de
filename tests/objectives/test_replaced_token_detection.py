"""Replaced-token detection: draws, gradients, normalisation, metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import microbatch_cases
from prottrans_jax.models import electra
from prottrans_jax.objectives import replaced_token_detection

ROWS, LENGTH, VOCAB = 4, 10, 23
CONFIG = electra.ElectraConfig(
    vocab_size=VOCAB,
    num_layers=2,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    generator_num_layers=1,
    generator_num_heads=1,
    generator_head_dim=5,
    generator_d_model=6,
    generator_d_ff=8,
    max_length=16,
)
SEGMENTS = np.array(
    [[1] * 10, [1] * 5 + [2] * 5, [1] * 6 + [0] * 4, [0] * 10], np.int32
)


def make_batch():
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    targets = rng.integers(1, VOCAB, shape).astype(np.int32)
    predicted = (SEGMENTS > 0) & (rng.random(shape) < 0.5)
    return {
        "input_tokens": np.where(predicted, 4, targets),
        "target_tokens": targets,
        "loss_weights": predicted.astype(np.float32),
        "corrupted": predicted.astype(np.int32),
        "segment_ids": SEGMENTS,
        "positions": np.where(SEGMENTS == 2, np.arange(10) - 5, np.arange(10)),
        "token_types": np.zeros(shape, np.int32),
    }


@pytest.fixture(scope="module")
def objective():
    return replaced_token_detection.ReplacedTokenDetection(electra.Electra(CONFIG))


@pytest.fixture(scope="module")
def params():
    params = jax.jit(electra.init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 3 * x, params)


def test_microbatches_add_up_to_the_batch(objective, params, step):
    """With the same key, draws included: noise goes with the row's content."""
    whole, summed = microbatch_cases.whole_and_summed(
        objective, params, step, make_batch()
    )
    assert whole.carry == ()
    assert summed.normalizers == whole.normalizers
    np.testing.assert_allclose(summed.loss, whole.loss, rtol=1e-6)
    for name, metric in whole.metrics.items():
        np.testing.assert_allclose(summed.metrics[name], metric, rtol=1e-5)
    total, weight = whole.metrics["loss"]
    np.testing.assert_allclose(total / weight, whole.loss, rtol=1e-6)
    limit = microbatch_cases.of_the_largest
    microbatch_cases.assert_close(summed.grads, whole.grads, limit)


def test_loss_and_metrics_by_hand(objective, params, step, monkeypatch):
    batch = make_batch()
    targets, predicted = batch["target_tokens"], batch["loss_weights"] > 0
    # Draws put there by hand: every other one right by chance.
    right = np.arange(LENGTH) % 2 == 0
    drawn = np.where(right, targets, targets % (VOCAB - 1) + 1)
    monkeypatch.setattr(
        replaced_token_detection, "draw_tokens", lambda *_: jnp.asarray(drawn)
    )
    loss, (metrics, _) = jax.jit(
        lambda params: objective(
            params,
            jax.device_put(batch),
            objective.normalizers(jax.device_put(batch)),
            (),
            jax.random.key(0),
            train=False,
        )
    )(params)
    read = np.where(predicted, drawn, targets)  # what the discriminator sees
    labels = predicted & ~right
    model, real = electra.Electra(CONFIG), SEGMENTS > 0

    def run(method, tokens):
        return model.apply(
            {"params": params},
            jnp.asarray(tokens),
            segment_ids=jnp.asarray(SEGMENTS),
            positions=jnp.asarray(batch["positions"]),
            method=method,
        )

    logits = run(electra.Electra.generate, batch["input_tokens"]).logits
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    generator = nll[predicted].mean()
    scores = np.asarray(run(electra.Electra.discriminate, read).replaced_logits)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    entropy = -np.log(np.where(labels, p, 1 - p))[real].mean()
    np.testing.assert_allclose(loss, generator + 50 * entropy, rtol=1e-5)
    means = {name: x / w for name, (x, w) in metrics.items() if w}
    correct = (p > 0.5) == labels
    for name, expected in {
        "loss": generator + 50 * entropy,
        "generator_loss": generator,
        "corrupted_loss": generator,
        "masked_loss": generator,
        "accuracy": (log_p.argmax(-1) == targets)[predicted].mean(),
        "discriminator_loss": entropy,
        "discriminator_accuracy": correct[real].mean(),
        "discriminator_replaced_accuracy": correct[labels].mean(),
        "always_original_accuracy": 1 - labels[real].mean(),
        "real_token_fraction": 26 / 40,
    }.items():
        np.testing.assert_allclose(means[name], expected, rtol=1e-5, err_msg=name)
    assert metrics["residues"] == (26 - 2 * 4, 0)


def test_no_gradient_goes_from_the_discriminator_to_the_generator(params):
    batch = jax.device_put(make_batch())

    @functools.partial(
        jax.jit,
        static_argnums=0,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    def grads(weight):
        objective = replaced_token_detection.ReplacedTokenDetection(
            electra.Electra(CONFIG), discriminator_weight=weight
        )
        normalizers = objective.normalizers(batch)

        def loss(params):
            rng = jax.random.key(3)
            return objective(params, batch, normalizers, (), rng, train=False)[0]

        return jax.grad(loss)(params)

    without, with_it = grads(0.0), grads(50.0)
    for ours, expected in zip(
        jax.tree.leaves(with_it["generator"]),
        jax.tree.leaves(without["generator"]),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    # The shared embeddings learn from both.
    table = [x["embeddings"]["token"]["embedding"] for x in (without, with_it)]
    assert np.abs(table[1] - table[0]).max() > 0.1
    assert all(not x.any() for x in jax.tree.leaves(without["discriminator"]))


def test_an_empty_batch_has_loss_zero_and_finite_gradients(objective, params, step):
    batch = make_batch()
    for name in ("loss_weights", "segment_ids", "corrupted"):
        batch[name] = np.zeros_like(batch[name])
    (loss, _), grads = step(
        params, batch, objective.normalizers(jax.device_put(batch)), train=True
    )
    assert loss == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_draws_follow_the_softmax_and_differ_between_rows():
    logits = jnp.log(jnp.array([0.1, 0.6, 0.05, 0.25]))
    rows, length = 40, 50
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, 20)
    many = jnp.broadcast_to(logits, (rows, length, 4))
    drawn = replaced_token_detection.draw_tokens(jax.random.key(0), many, tokens)
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    # Of 2,000 draws: three standard deviations are at most 0.033.
    np.testing.assert_allclose(shares, np.exp(logits), atol=0.033)
    assert len({tuple(row) for row in np.asarray(drawn)}) == rows
    # A row's draws do not depend on where in which batch it stands...
    some = replaced_token_detection.draw_tokens(
        jax.random.key(0), many[:3], tokens[jnp.array([7, 0, 39])]
    )
    assert np.array_equal(some, drawn[jnp.array([7, 0, 39])])
    # ... but on the key.
    other = replaced_token_detection.draw_tokens(jax.random.key(5), many, tokens)
    assert not np.array_equal(other, drawn)
