"""Blocks, gradients and padding of a bias by distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.kernels import distance_bias


@pytest.fixture
def made():
    q_length, kv_length, heads = 7, 11, 3
    values = jax.random.normal(jax.random.key(0), (heads, q_length + kv_length - 1))
    return distance_bias.DistanceBias(values, q_length), q_length, kv_length


def by_gather(bias, q_positions, kv_positions):
    distance = kv_positions[None, :] - q_positions[:, None]
    return bias.values[:, distance + bias.q_length - 1]


def test_a_block_holds_the_values_of_its_distances(made):
    bias, _, _ = made
    for q_start, kv_start, q_size, kv_size in [
        (0, 0, 7, 11),
        (2, 6, 4, 5),
        (6, 0, 1, 3),
    ]:
        block = jax.jit(bias.block, static_argnums=(2, 3))(
            q_start, kv_start, q_size, kv_size
        )
        expected = by_gather(
            bias, q_start + np.arange(q_size), kv_start + np.arange(kv_size)
        )
        assert np.array_equal(block, expected)


def test_gradient_of_a_block_sums_over_equal_distances(made):
    bias, q_length, _ = made
    weights = jax.random.normal(jax.random.key(1), (3, 4, 5))

    def loss(values, read):
        moved = distance_bias.DistanceBias(values, q_length)
        return jnp.sum(weights * read(moved))

    ours = jax.grad(loss)(bias.values, lambda b: b.block(2, 6, 4, 5))
    expected = jax.grad(loss)(
        bias.values, lambda b: by_gather(b, 2 + np.arange(4), 6 + np.arange(5))
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_padding_keeps_the_bias_of_real_positions(made):
    bias, q_length, kv_length = made
    padded = bias.pad(2, 4).block(0, 0, q_length + 2, kv_length + 4)
    assert np.array_equal(
        padded[:, :q_length, :kv_length], bias.block(0, 0, q_length, kv_length)
    )
