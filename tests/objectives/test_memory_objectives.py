"""Causal and permutation language modelling: normalisation, memories, metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    params = jax.tree.map(lambda x: x, params)
    from flax import linen as nn

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
    first = make_batch(0)
    (_, (_, carry)), _ = step(
        objective, params, first, objective.normalizers(first), carry
    )
    batch = make_batch(1)
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
