"""Causal and permutation language modelling: normalisation, memories, metrics."""

import functools
import json

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.interop import hf_transformer_xl, layer_stacks, safetensors
from prottrans_jax.models import transformer_xl, xlnet
from prottrans_jax.objectives import causal_lm, permutation_lm

ROWS, LENGTH, VOCAB, MEMORIES = 4, 9, 23, 6
SIZES = dict(
    vocab_size=VOCAB, num_layers=2, num_heads=3, head_dim=4, d_model=10, d_ff=14
)
# Segments of two batches; rows go on, with the same number, in the second.
SEGMENTS = np.array(
    [
        [[1, 1, 1, 1, 2, 2, 2, 2, 2], [2, 2, 2, 3, 3, 3, 3, 4, 4]],
        [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 2, 2, 0, 0]],
        [[1, 1, 2, 2, 3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3, 3, 3, 3]],
    ]
)


def make_causal(**options):
    config = transformer_xl.TransformerXLConfig(
        **SIZES, mem_length=MEMORIES, dropout_rate=0.0
    )
    return causal_lm.CausalLM(transformer_xl.TransformerXL(config), **options)


def make_permutation(mem_length=MEMORIES, **options):
    config = xlnet.XLNetConfig(**SIZES, mem_length=mem_length, dropout_rate=0.0)
    return permutation_lm.PermutationLM(xlnet.XLNet(config), **options)


def make_batch(number=0):
    """Batch 0 or 1 of four lanes; a quarter of the tokens is predicted."""
    rng = np.random.default_rng(number)
    segments = SEGMENTS[:, number]
    shape = segments.shape
    predicted = (segments > 0) & (rng.random(shape) < 0.3)
    ranks = np.where(predicted, rng.permuted(np.tile(np.arange(LENGTH), (ROWS, 1))), -1)
    return {
        "input_tokens": rng.integers(0, VOCAB, shape),
        "target_tokens": rng.integers(0, VOCAB, shape),
        "loss_weights": (predicted * rng.uniform(0.5, 1.5, shape)).astype(np.float32),
        "segment_ids": segments,
        "positions": np.tile(np.arange(LENGTH), (ROWS, 1)) + LENGTH * number,
        "token_types": rng.integers(0, 2, shape),
        "factorization_ranks": ranks,
    }


OBJECTIVES = {
    "causal": make_causal(),
    "across proteins": make_causal(attend_across_proteins=True),
    "permutation": make_permutation(memories=True),
    "no memories": make_permutation(max_targets=2),
}
EACH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def init(objective):
    shapes = {name: x.shape for name, x in make_batch().items()}
    params = jax.jit(lambda key: objective.init(key, shapes))(jax.random.key(0))
    # Large enough that attention is far from uniform.
    return jax.tree.map(lambda x: 6 * x, nn.unbox(params))


@functools.partial(jax.jit, static_argnames="objective")
def step(objective, params, batch, normalizers, carry):
    def loss(params):
        rng = jax.random.key(3)
        return objective(params, batch, normalizers, carry, rng, train=True)

    return jax.value_and_grad(loss, has_aux=True)(params)


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def add(*trees):
    return jax.tree.map(lambda *xs: sum(xs), *trees)


def assert_trees_close(ours, expected, atol):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@EACH
def test_microbatches_add_up_to_the_batch_memories_included(objective):
    params = init(objective)
    carry = objective.initial_carry(ROWS)
    first = jax.device_put(make_batch(0))
    (_, (_, carry)), _ = step(
        objective, params, first, objective.normalizers(first), carry
    )
    batch = jax.device_put(make_batch(1))
    normalizers = objective.normalizers(batch)
    (loss, (metrics, after)), grads = step(objective, params, batch, normalizers, carry)
    parts = [rows_of((batch, carry), rows) for rows in (slice(0, 3, 2), slice(1, 4, 2))]
    summed = add(*(objective.normalizers(part) for part, _ in parts))
    assert_trees_close(summed, normalizers, 1e-6)
    results = [step(objective, params, part, normalizers, own) for part, own in parts]
    np.testing.assert_allclose(add(*(r[0][0] for r in results)), loss, rtol=1e-6)
    summed = add(*(r[0][1][0] for r in results))
    for name in metrics:
        np.testing.assert_allclose(summed[name], metrics[name], rtol=1e-5)
    assert_trees_close(add(*(r[1] for r in results)), grads, 1e-5)
    for part, rows in zip(results, (slice(0, 3, 2), slice(1, 4, 2)), strict=True):
        assert_trees_close(part[0][1][1], rows_of(after, rows), 1e-5)


def loss_of(objective, params, batch, carry):
    normalizers = objective.normalizers(jax.device_put(batch))
    (loss, (metrics, carry)), grads = step(objective, params, batch, normalizers, carry)
    return loss, metrics, carry, grads


def nll_of(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


def test_permutation_loss_is_that_of_the_queries_at_predicted_positions():
    objective, batch = make_permutation(), make_batch(0)
    params = init(objective)
    loss, metrics, carry, _ = loss_of(objective, params, batch, ())
    assert carry == ()
    # Here a query for every position, predicted or not, by a full mask.
    ranks = batch["factorization_ranks"]
    hidden = (ranks[:, None, :] != -1) & (ranks[:, None, :] >= ranks[:, :, None])
    logits, _ = objective.model.apply(
        {"params": params},
        jnp.asarray(batch["input_tokens"]),
        segment_ids=jnp.asarray(batch["segment_ids"]),
        token_types=jnp.asarray(batch["token_types"]),
        perm_mask=jnp.asarray(hidden, jnp.float32),
        target_mapping=jnp.tile(jnp.eye(LENGTH), (ROWS, 1, 1)),
        deterministic=True,
    )
    nll, weights = nll_of(logits, batch["target_tokens"]), batch["loss_weights"]
    correct = np.argmax(logits, -1) == batch["target_tokens"]
    expected = {
        "loss": (nll * weights).sum(),
        "corrupted_loss": (nll * weights).sum(),
        "accuracy": (correct * weights).sum(),
    }
    for name, total in expected.items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5)
        np.testing.assert_allclose(metrics[name][1], weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(loss, expected["loss"] / weights.sum(), rtol=1e-5)
    real = batch["segment_ids"] > 0
    starts = real & (batch["positions"] == 0)
    assert metrics["residues"][0] == real.sum() - 2 * starts.sum()
    assert metrics["real_token_fraction"] == (real.sum(), real.size)


def test_targets_beyond_the_slots_are_left_out_and_counted():
    batch = make_batch(0)
    full, few = make_permutation(), make_permutation(max_targets=2)
    params = init(full)
    predicted = batch["loss_weights"] > 0
    kept = predicted & (np.cumsum(predicted, axis=1) <= 2)
    assert 0 < kept.sum() < predicted.sum()
    loss, metrics, _, _ = loss_of(few, params, batch, ())
    share = metrics["targets_left_out"]
    assert share == ((predicted & ~kept).sum(), predicted.sum())
    fewer = batch | {"loss_weights": np.where(kept, batch["loss_weights"], 0)}
    expected, _, _, _ = loss_of(full, params, fewer, ())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # The query stream is as long as there are slots.
    shapes = {"input_tokens": (ROWS, 512)}
    large = make_permutation(max_targets=256).flops(shapes)
    assert large < make_permutation().flops(shapes) < 2 * large


@pytest.mark.parametrize("across", [False, True])
def test_memories_are_of_the_own_protein_unless_asked_otherwise(across):
    objective = make_causal(attend_across_proteins=across)
    params = init(objective)
    first, second = make_batch(0), make_batch(1)

    def loss_after(changed):
        """Of the second batch, where the tokens of one protein in the first differ."""
        own = (np.arange(ROWS)[:, None] == 0) & (first["segment_ids"] == changed)
        tokens = np.where(
            own, (first["input_tokens"] + 7) % VOCAB, first["input_tokens"]
        )
        _, _, carry, _ = loss_of(
            objective,
            params,
            first | {"input_tokens": tokens},
            objective.initial_carry(ROWS),
        )
        weights = np.where(second["segment_ids"] == 2, 1.0, 0.0)
        batch = second | {"loss_weights": weights.astype(np.float32)}
        return loss_of(objective, params, batch, carry)[0]

    # In the first lane protein 2 goes on in the second batch, protein 1 does not.
    unchanged = loss_after(0)
    assert (loss_after(1) != unchanged) == across
    assert loss_after(2) != unchanged


def test_causal_loss_and_gradients_equal_those_of_hugging_face(shared):
    folder = shared / "parity" / "dev" / "transfo_xl"
    case = np.load(folder / "case_lm_loss.npz")
    before = np.load(folder / "case_mems.npz")
    assert np.array_equal(case["in_input_ids_1"], before["in_input_ids_1"])
    config = hf_transformer_xl.config_from_hf(
        json.loads((folder / "lm" / "config.json").read_text()), dropout_rate=0.0
    )
    params = layer_stacks.stack(
        hf_transformer_xl.params_from_hf(
            safetensors.load(folder / "lm" / "model.safetensors"), config
        )
    )
    objective = causal_lm.CausalLM(transformer_xl.TransformerXL(config))
    # [layers, mem_len, batch, d_model] -> [batch, layers, mem_len, d_model]
    states = np.moveaxis(before["out_mems_1"], 2, 0)
    carry = {"states": states, "segments": np.ones((3, 24), np.int32)}
    tokens, labels = case["in_input_ids_2"], case["in_labels_2"]
    weights = np.pad(labels[:, 1:] != -100, ((0, 0), (0, 1)))
    batch = {
        "input_tokens": tokens,
        "target_tokens": np.pad(labels[:, 1:], ((0, 0), (0, 1))) * weights,
        "loss_weights": weights.astype(np.float32),
        "segment_ids": np.ones_like(tokens),
        "positions": np.ones_like(tokens),
    }
    loss, _, carry, grads = loss_of(objective, params, batch, carry)
    np.testing.assert_allclose(loss, case["out_loss"], rtol=1e-5)
    np.testing.assert_allclose(
        carry["states"], np.moveaxis(before["out_mems_2"], 2, 0), rtol=0, atol=2e-5
    )
    ours = hf_transformer_xl.params_to_hf(grads, config)
    for name, theirs in np.load(folder / "grads_lm_loss.npz").items():
        limit = 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=limit)


@EACH
def test_a_batch_of_padding_has_loss_zero_and_finite_gradients(objective):
    params, batch = init(objective), make_batch(0)
    batch = {name: np.zeros_like(x) for name, x in batch.items()}
    loss, metrics, _, grads = loss_of(
        objective, params, batch, objective.initial_carry(ROWS)
    )
    assert loss == 0 and metrics["residues"][0] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_memories_need_a_model_that_has_some():
    with pytest.raises(ValueError, match="mem_length is 0"):
        make_permutation(mem_length=0, memories=True)
    assert make_permutation().initial_carry(ROWS) == ()
