"""Attention: masks, and blockwise against plain."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.kernels import distance_bias, softmax_attention
from prottrans_jax.layers import attention

BATCH, Q_LENGTH, KV_LENGTH, HEADS, HEAD_DIM = 2, 11, 13, 3, 5
# Two proteins and padding; the second row has a protein whose keys are missing.
Q_SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 3 + [2] * 2 + [3] * 6])
KV_SEGMENTS = np.array([[1] * 6 + [2] * 4 + [0] * 3, [1] * 7 + [3] * 6])


def make_inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (BATCH, Q_LENGTH, HEADS, HEAD_DIM), dtype)
    key = jax.random.normal(keys[1], (BATCH, KV_LENGTH, HEADS, HEAD_DIM), dtype)
    value = jax.random.normal(keys[2], (BATCH, KV_LENGTH, HEADS, HEAD_DIM), dtype)
    values = 2 * jax.random.normal(keys[3], (HEADS, Q_LENGTH + KV_LENGTH - 1))
    return query, key, value, values


def attend(query, key, value, bias_values, *, causal=False, block_size=None):
    return attention.dot_product_attention(
        query,
        key,
        value,
        q_segments=jnp.asarray(Q_SEGMENTS),
        kv_segments=jnp.asarray(KV_SEGMENTS),
        causal=causal,
        bias=distance_bias.DistanceBias(bias_values, Q_LENGTH),
        block_size=block_size,
    )


def by_loops(query, key, value, bias_values, causal):
    """The definition, query by query, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((BATCH, Q_LENGTH, HEADS, HEAD_DIM))
    for b, q, h in np.ndindex(BATCH, Q_LENGTH, HEADS):
        seen = [
            k
            for k in range(KV_LENGTH)
            if Q_SEGMENTS[b, q] == KV_SEGMENTS[b, k] != 0 and not (causal and k > q)
        ]
        if not seen:
            continue
        scores = np.array(
            [
                query[b, q, h] @ key[b, k, h] + bias_values[h, k - q + Q_LENGTH - 1]
                for k in seen
            ]
        )
        weights = np.exp(scores - scores.max())
        out[b, q, h] = weights @ value[b, seen, h] / weights.sum()
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
def test_attention_follows_its_definition(causal, block_size):
    inputs = make_inputs()
    out = attend(*inputs, causal=causal, block_size=block_size)
    expected = by_loops(*inputs, causal)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal, block_size", [(False, 4), (True, 4), (True, 64)])
def test_blockwise_gradients_equal_plain_ones(causal, block_size):
    inputs = make_inputs()
    weights = jax.random.normal(jax.random.key(5), inputs[0].shape)

    @functools.partial(jax.jit, static_argnums=1)
    def grads(inputs, block_size):
        def loss(inputs):
            out = attend(*inputs, causal=causal, block_size=block_size)
            return jnp.sum(out * weights)

        return jax.grad(loss)(inputs)

    plain, blockwise = grads(inputs, None), grads(inputs, block_size)
    for ours, expected in zip(blockwise, plain, strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_size", [None, 4])
def test_queries_without_a_key_give_zeros_and_no_nan(block_size):
    query, key, value, bias = make_inputs()
    lonely = (Q_SEGMENTS == 0) | ((Q_SEGMENTS == 2) & (np.arange(BATCH) == 1)[:, None])

    def loss(inputs):
        return jnp.sum(jnp.square(attend(*inputs, bias, block_size=block_size)))

    out = attend(query, key, value, bias, block_size=block_size)
    assert np.array_equal(out[lonely], np.zeros_like(out[lonely]))
    assert (np.abs(out[~lonely]) > 0).all()
    grads = jax.grad(loss)((query, key, value))
    assert all(np.isfinite(x).all() for x in grads)
    assert np.array_equal(grads[0][lonely], np.zeros_like(out[lonely]))


@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_plain_attention(
    implementation, biased, causal, monkeypatch
):
    """On any machine the code around the kernel; on a GPU the kernel too."""
    dtype, atol = jnp.float32, 1e-5
    if implementation == "cudnn":
        device = jax.devices()[0]
        if device.platform != "gpu" or float(device.compute_capability) < 8:
            pytest.skip("no GPU with the kernel")
        assert softmax_attention.has_fused(jnp.bfloat16, 8)
        dtype, atol = jnp.bfloat16, 3e-2
    monkeypatch.setattr(softmax_attention, "FUSED_IMPLEMENTATION", implementation)
    lengths = np.array([6, 3, 0])
    query, key, value = jax.random.normal(jax.random.key(1), (3, 3, 6, 2, 8), dtype)
    segments = jnp.asarray(np.arange(6) < lengths[:, None], jnp.int32)
    values = 2 * jax.random.normal(jax.random.key(2), (2, 11))
    arguments = {
        "q_segments": segments,
        "kv_segments": segments,
        "causal": causal,
        "bias": distance_bias.DistanceBias(values, 6) if biased else None,
    }
    plain = attention.dot_product_attention(query, key, value, **arguments)
    fused = attention.dot_product_attention(query, key, value, **arguments, fused=True)
    fused, plain = (np.asarray(x, np.float32) for x in (fused, plain))
    assert fused.shape == (3, 6, 2, 8) and np.isfinite(fused).all()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(fused[row, :length], plain[row, :length], atol=atol)


def test_blockwise_scores_are_never_all_in_memory():
    length, block = 512, 64
    shape = (1, length, 2, 8)
    segments = jnp.ones((1, length), jnp.int32)
    bias = distance_bias.DistanceBias(jnp.zeros((2, 2 * length - 1)), length)

    def loss(x, bias, block_size):
        out = attention.dot_product_attention(
            x,
            x,
            x,
            q_segments=segments,
            kv_segments=segments,
            bias=bias,
            block_size=block_size,
        )
        return jnp.sum(out)

    def temporary_bytes(block_size):
        step = jax.jit(jax.grad(lambda x, b: loss(x, b, block_size), argnums=(0, 1)))
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        compiled = step.lower(x, bias).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 2 * length * length * 4
    assert temporary_bytes(None) > scores
    assert temporary_bytes(block) < scores / 2


@pytest.mark.parametrize("bias_shape", [None, (5, 7, 9), (3, 5, 7, 9), (1, 7, 9)])
@pytest.mark.parametrize("together", [1, 2, 5, 10])
def test_attention_in_parts_equals_attention_at_once(bias_shape, together, monkeypatch):
    """Some heads of a row, or two rows of three: the last part overlaps the others."""
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (3, 7, 5, 4))
    key, value = (jax.random.normal(k, (3, 9, 5, 4)) for k in keys[1:3])
    bias = None if bias_shape is None else jax.random.normal(keys[3], bias_shape)
    segments = jnp.array([[1] * 4 + [2] * 3, [1] * 5 + [0] * 2, [1] * 7])
    kv_segments = jnp.array([[1] * 4 + [2] * 5, [1] * 6 + [0] * 3, [1] * 9])

    def attend_anew():
        program = jax.jit(
            lambda *arrays: attention.dot_product_attention(
                *arrays, q_segments=segments, kv_segments=kv_segments, bias=bias
            )
        ).lower(query, key, value)
        return "while" in program.as_text(), program.compile()(query, key, value)

    loops, whole = attend_anew()
    assert not loops
    monkeypatch.setattr(softmax_attention, "FEW_SCORES_BYTES", 0)
    in_cache = together * (4 * 7 * 9)
    monkeypatch.setattr(softmax_attention, "CACHED_SCORES_BYTES", in_cache)
    loops, in_parts = attend_anew()
    assert loops
    np.testing.assert_allclose(in_parts, whole, rtol=0, atol=1e-6)


def test_mask_matches_the_drawing_in_its_docstring():
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    drawing = """
        1 1 1 . . .      1 . . . . .
        1 1 1 . . .      1 1 . . . .
        1 1 1 . . .      1 1 1 . . .
        . . . 1 1 .      . . . 1 . .
        . . . 1 1 .      . . . 1 1 .
        . . . . . .      . . . . . .
    """
    # Python 3.13 removes the indentation of docstrings.
    assert textwrap.indent(inspect.cleandoc(drawing), " " * 4) in inspect.getdoc(
        softmax_attention.make_mask
    )
    cells = np.array([line.split() for line in drawing.strip().splitlines()]) == "1"
    full = softmax_attention.make_mask(segments, segments)[0, 0]
    causal = softmax_attention.make_mask(segments, segments, causal=True)[0, 0]
    assert np.array_equal(full, cells[:, :6])
    assert np.array_equal(causal, cells[:, 6:])


def test_blockwise_refuses_a_full_bias():
    query, key, value, _ = make_inputs()
    segments = dict(q_segments=jnp.asarray(Q_SEGMENTS), kv_segments=KV_SEGMENTS)
    with pytest.raises(ValueError, match="DistanceBias"):
        attention.dot_product_attention(
            query,
            key,
            value,
            **segments,
            bias=jnp.zeros((HEADS, Q_LENGTH, KV_LENGTH)),
            block_size=4,
        )
