"""Masked language modelling with sentence order: normalisation and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import microbatch_cases
from prottrans_jax.models import albert, bert
from prottrans_jax.objectives import masked_lm

ROWS, LENGTH, VOCAB = 4, 9, 23
CONFIG = albert.AlbertConfig(
    vocab_size=VOCAB,
    num_layers=2,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    d_embed=6,
    max_length=16,
    pooler=True,
    order_head=True,
    dropout_rate=0.2,
)
# Row 1 holds two pairs, of 5 and 4 tokens; row 3 is empty.
SEGMENTS = np.array([[1] * 9, [1] * 5 + [2] * 4, [1] * 6 + [0] * 3, [0] * 9], np.int32)
TYPES = np.array(
    [
        [0] * 5 + [1] * 4,
        [0, 0, 0, 1, 1, 0, 0, 0, 1],
        [0] * 9,  # one protein alone
        [0] * 9,
    ],
    np.int32,
)
STARTS = np.zeros((ROWS, LENGTH), np.float32)
STARTS[[0, 1, 1], [0, 0, 5]] = 1


def make_batch():
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    return {
        "input_tokens": rng.integers(1, VOCAB, shape).astype(np.int32),
        "target_tokens": rng.integers(1, VOCAB, shape).astype(np.int32),
        "loss_weights": ((SEGMENTS > 0) & (rng.random(shape) < 0.5)).astype(np.float32),
        "corrupted": rng.integers(1, 4, shape).astype(np.int32),
        "segment_ids": SEGMENTS,
        "positions": np.where(SEGMENTS == 2, np.arange(9) - 5, np.arange(9)),
        "token_types": TYPES,
        "order_targets": rng.integers(0, 2, shape).astype(np.int32),
        "order_weights": STARTS,
    }


@pytest.fixture(scope="module")
def objective():
    return masked_lm.MaskedLM(albert.Albert(CONFIG), sentence_order_weight=0.7)


@pytest.fixture(scope="module")
def params():
    params = jax.jit(albert.init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    # Larger than at the start of training, so that losses differ between tokens.
    return jax.tree.map(lambda x: 10 * x, params)


def test_microbatches_add_up_to_the_batch(objective, params, step):
    # The rows differ in their numbers of targets and of pairs.
    whole, summed = microbatch_cases.whole_and_summed(
        objective, params, step, make_batch()
    )
    assert whole.carry == ()
    assert summed.normalizers == whole.normalizers
    np.testing.assert_allclose(summed.loss, whole.loss, rtol=1e-6)
    assert set(summed.metrics) == set(whole.metrics)
    for name, metric in whole.metrics.items():
        np.testing.assert_allclose(summed.metrics[name], metric, rtol=1e-5)
    limit = microbatch_cases.of_the_largest
    microbatch_cases.assert_close(summed.grads, whole.grads, limit)


def test_loss_and_metrics_by_hand(objective, params, step):
    batch = make_batch()
    (loss, (metrics, _)), _ = step(
        params, batch, objective.normalizers(jax.device_put(batch))
    )
    outputs = albert.Albert(CONFIG).apply(
        {"params": params},
        jnp.asarray(batch["input_tokens"]),
        segment_ids=jnp.asarray(SEGMENTS),
        token_types=jnp.asarray(TYPES),
    )

    def score(logits, targets):
        logits = np.asarray(logits, np.float64)
        log_z = np.log(np.exp(logits).sum(-1))
        picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return log_z - picked, logits.argmax(-1) == targets

    weights, corrupted = batch["loss_weights"], batch["corrupted"]
    nll, correct = score(outputs.logits, batch["target_tokens"])
    order_nll, order_correct = score(outputs.order_logits, batch["order_targets"])
    expected = {
        "loss": (nll, weights),
        "corrupted_loss": (nll, weights),
        "accuracy": (correct, weights),
        "masked_loss": (nll, weights * (corrupted == 1)),
        "substituted_loss": (nll, weights * (corrupted == 2)),
        "kept_loss": (nll, weights * (corrupted == 3)),
        "order_loss": (order_nll, STARTS),
        "order_accuracy": (order_correct, STARTS),
    }
    for name, (value, weight) in expected.items():
        np.testing.assert_allclose(metrics[name][0], (value * weight).sum(), rtol=1e-5)
        np.testing.assert_allclose(metrics[name][1], weight.sum(), rtol=1e-6)
    mean = (nll * weights).sum() / weights.sum()
    order_mean = (order_nll * STARTS).sum() / 3
    np.testing.assert_allclose(loss, mean + 0.7 * order_mean, rtol=1e-5)
    assert metrics["real_token_fraction"] == (24, 36)
    # [CLS] A [SEP] B [SEP] has three special tokens, a protein alone two.
    assert metrics["residues"] == (24 - 3 * 3 - 2, 0)


def test_an_empty_batch_has_loss_zero_and_finite_gradients(objective, params, step):
    batch = make_batch()
    for name in ("loss_weights", "order_weights", "segment_ids", "token_types"):
        batch[name] = np.zeros_like(batch[name])
    (loss, (metrics, _)), grads = step(
        params, batch, objective.normalizers(jax.device_put(batch)), train=True
    )
    assert loss == 0
    assert metrics["residues"][0] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_only_the_features_that_are_used_are_asked_for(objective, params):
    plain = masked_lm.MaskedLM(albert.Albert(CONFIG))
    assert set(objective.features) - set(plain.features) == {
        "order_targets",
        "order_weights",
    }
    batch = {name: jnp.asarray(make_batch()[name]) for name in plain.features}
    loss, (metrics, _) = jax.eval_shape(
        lambda: plain(
            params, batch, plain.normalizers(batch), (), jax.random.key(0), train=True
        )
    )
    assert loss.shape == () and "order_loss" not in metrics


def test_objective_that_needs_a_missing_head_is_refused_when_it_is_made():
    fields = dict(
        vocab_size=7, num_layers=1, num_heads=1, head_dim=2, d_model=2, d_ff=2
    )
    config = bert.BertConfig(**fields, max_length=5)
    with pytest.raises(ValueError, match=r"sentence_order_weight=1.* order_head=True"):
        masked_lm.MaskedLM(bert.Bert(config), sentence_order_weight=1)
    config = bert.BertConfig(**fields, max_length=5, lm_head=False)
    with pytest.raises(ValueError, match="lm_head=False"):
        masked_lm.MaskedLM(bert.Bert(config))


def test_init_and_flops_take_shapes_alone(objective, params):
    batch = make_batch()
    structs = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.int32) for name, x in batch.items()
    }
    boxed = jax.eval_shape(
        functools.partial(objective.init, batch_shapes=structs), jax.random.key(0)
    )
    kernel = boxed["encoder"]["layer"]["mlp"]["wi"]["kernel"]
    assert kernel.names == ("embed", "mlp")  # one layer for all: no layer axis
    assert [x.shape for x in jax.tree.leaves(boxed)] == [
        x.shape for x in jax.tree.leaves(params)
    ]
    shapes = {name: x.shape for name, x in batch.items()}
    expected = 3 * ROWS * albert.forward_flops(CONFIG, LENGTH)
    assert objective.flops(structs) == objective.flops(shapes) == expected
