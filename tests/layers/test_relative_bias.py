"""Buckets and distances of T5's relative bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import relative_bias

# transformers 4.57.6, T5Attention._relative_position_bucket, 32 buckets, maximum 128,
# at these distances (key minus query).
DISTANCES = [-200, -128, -127, -91, -90, -64, -46, -45, -16, -9, -8, -7, -1, 0]
BACKWARD = {
    True: [15, 15, 15, 15, 14, 14, 13, 12, 10, 8, 8, 7, 1, 0],
    False: [31, 31, 31, 29, 29, 26, 24, 23, 16, 9, 8, 7, 1, 0],
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_hugging_face(bidirectional):
    kwargs = dict(bidirectional=bidirectional, num_buckets=32, max_distance=128)
    buckets = relative_bias.bucket(np.array(DISTANCES), **kwargs)
    assert buckets.tolist() == BACKWARD[bidirectional]
    forward = relative_bias.bucket(-np.array(DISTANCES), **kwargs)
    if bidirectional:
        # Keys after the query have the upper half; distance 0 is in the lower.
        expected = [b + 16 for b in BACKWARD[True][:-1]] + [0]
    else:
        expected = [0] * len(DISTANCES)
    assert forward.tolist() == expected


@pytest.mark.slow  # for the import of transformers
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_distance_has_the_bucket_of_hugging_face(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    distances = np.arange(-40_000, 40_001)
    theirs = t5.T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional, 32, 128
    )
    ours = relative_bias.bucket(
        distances, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert np.array_equal(ours, theirs.numpy())


@pytest.fixture
def distance_bias():
    q_length, kv_length, heads = 7, 11, 3
    values = jax.random.normal(jax.random.key(0), (heads, q_length + kv_length - 1))
    return relative_bias.DistanceBias(values, q_length), q_length, kv_length


def by_gather(bias, q_positions, kv_positions):
    distance = kv_positions[None, :] - q_positions[:, None]
    return bias.values[:, distance + bias.q_length - 1]


def test_a_block_holds_the_values_of_its_distances(distance_bias):
    bias, _, _ = distance_bias
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


def test_gradient_of_a_block_sums_over_equal_distances(distance_bias):
    bias, q_length, _ = distance_bias
    weights = jax.random.normal(jax.random.key(1), (3, 4, 5))

    def loss(values, read):
        moved = relative_bias.DistanceBias(values, q_length)
        return jnp.sum(weights * read(moved))

    ours = jax.grad(loss)(bias.values, lambda b: b.block(2, 6, 4, 5))
    expected = jax.grad(loss)(
        bias.values, lambda b: by_gather(b, 2 + np.arange(4), 6 + np.arange(5))
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_padding_keeps_the_bias_of_real_positions(distance_bias):
    bias, q_length, kv_length = distance_bias
    padded = bias.pad(2, 4).block(0, 0, q_length + 2, kv_length + 4)
    assert np.array_equal(
        padded[:, :q_length, :kv_length], bias.block(0, 0, q_length, kv_length)
    )
