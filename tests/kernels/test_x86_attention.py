"""Attention of `kernels.x86`: agrees with XLA's, and segments are independent."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.x86_cases import BOTH, exact, needs_x86, numbers, uses_x86
from prottrans_jax.kernels import distance_bias, frozen, x86
from prottrans_jax.layers import attention

pytestmark = pytest.mark.usefixtures("x86_unit")


def heads(length, count=3, size=64, seed=0, dtype=jnp.bfloat16):
    return numbers(2, length, count, size, seed=seed, dtype=dtype) / math.sqrt(8)


def segments(*lengths, length):
    return (jnp.arange(length) < jnp.array(lengths)[:, None]).astype(jnp.int32)


@needs_x86
@BOTH
@pytest.mark.parametrize("bias_of", [None, "distances", 1, 2])
@pytest.mark.parametrize(
    ("q_length", "kv_length", "size"), [(5, 5, 32), (70, 45, 64), (33, 96, 128)]
)
def test_attention_is_that_of_float32(q_length, kv_length, size, bias_of, kind):
    query = heads(q_length, size=size, dtype=kind)
    key, value = (heads(kv_length, size=size, seed=i, dtype=kind) for i in (1, 2))
    kv = segments(kv_length, kv_length - 4, length=kv_length)
    bias = None
    if bias_of == "distances":
        values = 2 * numbers(3, q_length + kv_length - 1, seed=3, dtype=jnp.float32)
        bias = distance_bias.DistanceBias(values, q_length)
    elif bias_of is not None:
        shape = (bias_of, 3, q_length, kv_length)
        bias = 2 * numbers(*shape, seed=3, dtype=jnp.float32)
    q = jnp.ones((2, q_length), jnp.int32)
    actual = jax.jit(x86.attention)(query, key, value, bias, q, kv)
    expected = attention.dot_product_attention(
        *(x.astype(jnp.float32) for x in (query, key, value)),
        q_segments=q,
        kv_segments=kv,
        bias=bias,
    )
    # bfloat16: weights and result are rounded to 8 bits.
    limit = (2.0**-7 if kind == jnp.bfloat16 else 2e-6) * np.abs(expected).max()
    np.testing.assert_allclose(exact(actual), expected, rtol=0, atol=limit)


@needs_x86
@pytest.mark.parametrize("q_length", [8, 20, 25])
def test_a_bias_for_other_lengths_is_left_to_xla(q_length):
    query, key = heads(20), heads(12, seed=1)
    values = jnp.zeros((3, q_length + 11))
    bias = distance_bias.DistanceBias(values, q_length)
    with frozen.scope():
        assert x86.can_attend(query, key, key, bias) == (q_length == 20)
        one_for_all = distance_bias.DistanceBias(values[:1], q_length)
        assert not x86.can_attend(query, key, key, one_for_all)


@needs_x86
@BOTH
def test_queries_without_keys_get_zero_and_hidden_keys_have_no_effect(kind):
    query, value = heads(40, dtype=kind), heads(40, seed=1, dtype=kind)
    q, kv = segments(40, 40, length=40), segments(0, 23, length=40)
    actual = x86.attention(query, query, value, None, q, kv)
    assert not np.asarray(actual[0]).any()
    cut = [x[:, :23] for x in (query, value)]
    np.testing.assert_array_equal(
        actual[1], x86.attention(query, *cut, None, q, kv[:, :23])[1]
    )


@needs_x86
@BOTH
@pytest.mark.parametrize("bias_of", [None, "distances", "pairs"])
def test_segments_do_not_affect_each_other(bias_of, kind):
    lengths, gap = (40, 1, 23), 5
    query, key, value = (heads(80, seed=i, dtype=kind)[:1] for i in range(3))
    values = 2 * numbers(3, 159, seed=3, dtype=jnp.float32)
    bias = distance_bias.DistanceBias(values, 80)
    if bias_of == "pairs":
        bias = 2 * numbers(1, 3, 80, 80, seed=3, dtype=jnp.float32)
    numbers_of = [0] * gap + [3] * 40 + [1] + [7] * 23 + [0] * 11
    packed = jnp.array([numbers_of])
    bias = None if bias_of is None else bias
    actual = x86.attention(query, key, value, bias, packed, packed)
    start = gap
    for length in lengths:
        own = slice(start, start + length)
        part = [x[:, own] for x in (query, key, value)]
        own_bias = bias
        if bias_of == "pairs":
            own_bias = bias[:, :, own, own]
        elif bias_of:
            own_bias = distance_bias.DistanceBias(
                values[:, 80 - length : 79 + length], length
            )
        one = jnp.ones((1, length), jnp.int32)
        alone = x86.attention(*part, own_bias, one, one)
        np.testing.assert_array_equal(exact(actual[:, own]), exact(alone))
        start += length
    assert not exact(actual[:, :gap]).any() and not exact(actual[:, start:]).any()


@needs_x86
def test_queries_attend_to_their_segment_at_any_position():
    query, key = heads(9)[:1], heads(12, seed=1)[:1]
    q, kv = jnp.array([[2] * 4 + [1] * 3 + [4] * 2]), jnp.array([[1] * 5 + [2] * 7])
    actual = x86.attention(query, key, key, None, q, kv)
    expected = attention.dot_product_attention(
        query, key, key, q_segments=q, kv_segments=kv
    )
    np.testing.assert_allclose(exact(actual), exact(expected), rtol=0, atol=2e-2)
    assert not exact(actual[:, 7:]).any() and exact(actual[:, :7]).all()


@needs_x86
@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_is_not_contiguous_is_refused(which):
    part, rows = heads(5)[:1], [jnp.ones((1, 5), jnp.int32)] * 2
    rows[which] = jnp.array([[1, 1, 2, 1, 1]])
    with pytest.raises(Exception, match="not contiguous"):
        x86.attention(part, part, part, None, *rows).block_until_ready()


@needs_x86
@BOTH
def test_attention_of_a_row_does_not_depend_on_other_rows(kind):
    query, rows = heads(37, dtype=kind), segments(37, 37, length=37)
    together = x86.attention(query, query, query, None, rows, rows)
    alone = x86.attention(*[query[1:]] * 3, None, rows[1:], rows[1:])
    np.testing.assert_array_equal(alone[0], together[1])


@needs_x86
@pytest.mark.parametrize("bias", [(37, 37), (1, 73)])
@pytest.mark.parametrize("name", ["key", "value", "bias", "q_segments", "kv_segments"])
def test_attention_of_wrong_sizes_is_refused(name, bias):
    arrays = {
        **{part: heads(37) for part in ("query", "key", "value")},
        "bias": jnp.zeros((1, 3, *bias)),
        "q_segments": jnp.ones((2, 37), jnp.int32),
        "kv_segments": jnp.ones((2, 37), jnp.int32),
    }
    arrays[name] = arrays[name][:, 1:]
    with pytest.raises(Exception, match="Sizes do not match"):
        x86.attention(**arrays).block_until_ready()


@needs_x86
@BOTH
@pytest.mark.parametrize("number", range(3))
def test_attention_to_nan_is_nan(number, kind):
    arrays = [heads(5, dtype=kind) for _ in range(3)]
    arrays[number] = arrays[number].at[0, 2, 1, 3].set(jnp.nan)
    rows = segments(5, 5, length=5)
    actual = np.asarray(x86.attention(*arrays, None, rows, rows), np.float32)
    assert np.isnan(actual[0, 2, 1]).any()
    assert np.isfinite(actual[1]).all() and np.isfinite(actual[0, :, 0]).all()


def attend(*parts, **keywords):
    with frozen.scope():
        return attention.dot_product_attention(
            *parts,
            q_segments=jnp.ones((2, 9), jnp.int32),
            kv_segments=jnp.ones((2, 9), jnp.int32),
            **keywords,
        )


@needs_x86
@pytest.mark.parametrize("block_size", [None, 4])
def test_causal_attention_is_left_to_xla(block_size):
    parts = [heads(9, seed=seed) for seed in range(3)]
    for causal in (False, True):
        way = functools.partial(attend, causal=causal, block_size=block_size)
        assert uses_x86(way, *parts) != causal


@needs_x86
@BOTH
def test_blockwise_attention_with_a_bias_is_the_same(kind):
    parts = [heads(9, seed=seed, dtype=kind) for seed in range(3)]
    bias = distance_bias.DistanceBias(2 * numbers(3, 17, dtype=jnp.float32), 9)
    blockwise = functools.partial(attend, bias=bias, block_size=4)
    assert uses_x86(blockwise, *parts)
    full = attend(*parts, bias=bias.block(0, 0, 9, 9))
    np.testing.assert_array_equal(exact(blockwise(*parts)), exact(full))


@needs_x86
def test_attention_works_where_float64_is_allowed():
    with jax.enable_x64(True):
        part = heads(5)
        rows = segments(5, 3, length=5).astype(jnp.int64)
        assert rows.dtype == jnp.int64
        x86.attention(part, part, part, None, rows, rows).block_until_ready()
