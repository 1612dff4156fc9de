"""What x86-64 CPUs have of their own: sums in float64, XLA's attention, and when."""

import concurrent.futures
import functools
import importlib
import math
import pathlib
import platform
import shutil

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import (
    attention,
    dense,
    mlp,
    norms,
    quantized,
    relative_bias,
    x86,
)

needs_x86 = pytest.mark.skipif(
    not x86.is_usable(), reason="no AVX-512 for bfloat16, or not compiled for it"
)
_VECTORS = {"avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512dq"}
_VECTORS |= {"avx512vl", "avx2", "fma"}
_TILES = {"amx_tile", "amx_bf16", "amx_int8"}
_units = x86.units


@pytest.fixture(params=_units() or ("none",), autouse=True)
def unit(request, monkeypatch):
    """Each that this machine has, as if it had no other."""
    if request.param != "none":
        monkeypatch.setattr(x86, "units", lambda: (request.param,))
    if len(_units()) > 1:
        jax.clear_caches()  # Programs know their unit.
    return request.param


def numbers(*shape, seed=0, dtype=jnp.bfloat16):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, dtype)


def exact(x):
    return np.asarray(x, np.float64)


def test_usable_where_the_cpu_has_the_instructions():
    """Or nobody would see that the package is not compiled any more."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("not compiled for this kind of machine")
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    info = pathlib.Path("/proc/cpuinfo").read_text()
    flags = set(info.partition("flags")[2].partition("\n")[0].split())
    wanted = [("amx", _VECTORS | _TILES), ("avx512", _VECTORS)]
    assert _units() == tuple(name for name, needs in wanted if flags >= needs)


@needs_x86
@pytest.mark.parametrize("says_its_source", [True, False])
def test_not_used_when_compiled_from_another_source(
    says_its_source, tmp_path, monkeypatch, caplog
):
    """As after an update of a checkout: what is called might take other arguments."""
    source = tmp_path / "_x86.cc"
    source.write_text("another")
    monkeypatch.setattr(x86, "_SOURCE", source)
    if not says_its_source:
        compiled = importlib.import_module("prottrans_jax.layers._x86")
        monkeypatch.delattr(compiled, "SOURCE_SHA256")
    assert not _units.__wrapped__()
    assert "Install the package again" in caplog.text


BOTH = pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32])


# Deeper than 1,024 goes in parts; 300 and 5 rows are no whole number of blocks.
@needs_x86
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(0, 64, 32), (1, 32, 96), (33, 1024, 32), (300, 1088, 288), (5, 3072, 544)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@BOTH
def test_product_is_the_sum(rows, inputs, outputs, kind, dtype):
    x = numbers(rows, inputs, dtype=kind)
    kernel = numbers(inputs, outputs, seed=1, dtype=kind)
    found = jax.jit(lambda x, kernel: x86.product(x, kernel, dtype))(x, kernel)
    assert found.dtype == dtype
    wanted = exact(x) @ exact(kernel)
    # What another's float32 is off by; bfloat16 rounds once more, to 8 bits.
    wide = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
    limit = 2 * np.abs(wide - wanted).max(initial=0)
    if dtype == "bfloat16":
        limit += 2.0**-8 * np.abs(wanted).max(initial=0)
    np.testing.assert_allclose(exact(found), wanted, rtol=0, atol=limit)


def by_hand(name, x):
    if name == "gelu_exact":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu":
        u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(u))
    if name == "silu":
        return x / (1 + np.exp(-x))
    return np.maximum(x, 0) if name == "relu" else x


@needs_x86
@pytest.mark.parametrize("name", mlp.ACTIVATIONS)
def test_bias_and_activation_follow_in_float32(name):
    x, kernel = 4 * numbers(7, 32), numbers(32, 64, seed=1)
    bias = numbers(64, seed=2, dtype=jnp.float32)
    found = x86.product(x, kernel, jnp.float32, bias=bias, activation=name)
    sums = exact(x) @ exact(kernel) + exact(bias)
    assert np.abs(sums).max() > 60  # Where exp() would overflow.
    np.testing.assert_allclose(found, by_hand(name, sums), rtol=2e-6, atol=3e-5)


@needs_x86
def test_gelu_is_off_by_the_last_digits_of_one_at_most():
    # Numbers of a row are alike: a matrix unit rounds them to a part of the largest.
    x = jnp.linspace(-9, 9, 96 * 32).reshape(96, 32)
    found = x86.product(x, jnp.eye(32), jnp.float32, activation="gelu_exact")
    wanted = by_hand("gelu_exact", exact(x))
    limit = 1.5e-7 * np.abs(exact(x)) + 1e-7 * np.abs(wanted) + 5e-8
    np.testing.assert_array_less(np.abs(found - wanted), limit)


@needs_x86
def test_gelu_of_what_is_no_number_or_infinite():
    x = numbers(3, 32, dtype=jnp.float32)
    bias = jnp.zeros(32).at[:3].set(jnp.array([jnp.nan, jnp.inf, 1e30]))
    zeros = jnp.zeros((32, 32))
    found = x86.product(x, zeros, jnp.float32, bias=bias, activation="gelu_exact")
    wanted = [jnp.nan, jnp.inf, 1e30, *[0] * 29]
    np.testing.assert_array_equal(found, np.tile(np.float32(wanted), (3, 1)))


@needs_x86
def test_float32_keeps_its_digits_in_numbers_of_different_sizes():
    scale = np.exp2(np.random.default_rng(2).integers(-40, 40, 544))
    x = np.asarray(numbers(70, 544, dtype=jnp.float32) * scale, np.float32)
    kernel = np.asarray(numbers(544, 32, seed=1, dtype=jnp.float32), np.float32)
    kernel = kernel / scale[:, None].astype(np.float32)
    wanted = exact(x) @ exact(kernel)
    found = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    off, others = np.abs(found - wanted), np.abs(exact(x @ kernel) - wanted)
    assert off.max() <= 1.5 * others.max() and off.mean() <= others.mean()


@needs_x86
def test_float32_keeps_its_digits_next_to_large_numbers_that_count_for_little():
    """As in models whose features are some hundreds of times larger than others."""
    x = np.array(numbers(40, 1024, dtype=jnp.float32))
    kernel = np.array(numbers(1024, 64, seed=1, dtype=jnp.float32))
    x[:, [7, 300]] *= [[1000, -400]]
    kernel[[7, 300]] *= [[1e-3], [1e-5]]
    wanted = exact(x) @ exact(kernel)
    found = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    off, others = np.abs(found - wanted), np.abs(exact(x @ kernel) - wanted)
    assert off.max() <= others.max() and off.mean() <= others.mean()


@needs_x86
@pytest.mark.parametrize(("one", "others"), [(1, 1e-20), (1, 1e-4), (1e10, 1e-28)])
def test_float32_of_a_kernel_with_one_number_that_differs(one, others):
    x = np.asarray(numbers(5, 64, dtype=jnp.float32))
    kernel = np.array(numbers(64, 32, seed=1, dtype=jnp.float32))
    kernel[7, 1:] *= others
    kernel[7, 0] = one
    wanted = exact(x) @ exact(kernel)
    found = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    size = np.linalg.norm(exact(x), axis=1)[:, None] * np.linalg.norm(
        exact(kernel), axis=0
    )
    np.testing.assert_array_less(np.abs(found - wanted), 3e-7 * size)


@needs_x86
def test_float32_of_any_size_keeps_its_digits():
    size = np.array([1e-28, 1e-10, 1, 1e10, 1e28, 0])
    x = np.asarray(numbers(6, 96, dtype=jnp.float32) * size[:, None], np.float32)
    kernel = np.array(numbers(96, 64, seed=1, dtype=jnp.float32))
    kernel[:, :6] *= size[::-1]
    kernel[:, 40] = 0
    found = x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32)
    wanted = exact(x) @ exact(kernel)
    limit = 1e-6 * np.linalg.norm(exact(x), axis=1)[:, None]
    limit = limit * np.linalg.norm(exact(kernel), axis=0)
    seen = (np.abs(wanted) < 3e38) & (np.abs(wanted) > 1e-36)
    assert seen.sum() > 6 * 50
    assert (np.abs(exact(found) - wanted) <= limit)[seen].all()
    assert not np.asarray(found)[5].any() and not np.asarray(found)[:5, 40].any()


@needs_x86
@BOTH
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_no_number_or_infinite_stays_in_its_row_or_column(value, kind):
    x = numbers(3, 64, dtype=kind).at[1, 40].set(value)
    kernel = numbers(64, 32, seed=1, dtype=kind)
    found = np.asarray(x86.product(x, kernel, jnp.float32))
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()
    found = np.asarray(x86.product(x[::2], kernel.at[9, 3].set(value), jnp.float32))
    assert not np.isfinite(found[:, 3]).any()
    assert np.isfinite(np.delete(found, 3, 1)).all()


@needs_x86
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 32, 64), (70, 1056, 160), (9, 8224, 96)]
)
@pytest.mark.parametrize("offset", [0, 3])
def test_int8_kernels_are_scaled_by_column(rows, inputs, outputs, offset):
    x = numbers(rows, inputs) + offset
    kernel = quantized.quantize(numbers(inputs, outputs, seed=1, dtype=jnp.float32))
    bias = numbers(outputs, seed=2, dtype=jnp.float32)
    more = {"scale": kernel.scale, "bias": bias, "activation": "relu"}
    found = x86.product(x, kernel.integers, jnp.float32, **more)
    wide, undecided = exact(x), 0.0
    if x86.rounds_to_int8():
        low, high = wide.min(1, keepdims=True), wide.max(1, keepdims=True)
        step, middle = (high - low) / 254, (high + low) / 2
        whole = (wide - middle) / step
        # In the middle between two integers, float32 may take the other one.
        halves = np.abs(whole % 1 - 0.5) < 1e-4
        undecided = step * halves.sum(1, keepdims=True)
        wide = np.round(whole) * step + middle
    scaled = exact(kernel.integers) * exact(kernel.scale)
    wanted = np.maximum(wide @ scaled + exact(bias), 0)
    limit = 1e-6 * np.abs(wide) @ np.abs(scaled) + undecided * np.abs(scaled).max(0)
    np.testing.assert_array_less(np.abs(found - wanted), limit)


@needs_x86
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_of_int8_kernels_what_is_no_number_or_infinite_stays_in_its_row(value):
    kernel = quantized.quantize(numbers(96, 32, seed=1, dtype=jnp.float32))
    x = numbers(3, 96).at[1, 40].set(value)
    found = np.asarray(x86.product(x, kernel.integers, jnp.float32, scale=kernel.scale))
    assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()


@needs_x86
def test_int8_kernels_with_rows_of_one_number():
    kernel = quantized.quantize(numbers(96, 32, seed=1, dtype=jnp.float32))
    x = jnp.asarray([[0.0], [2.5]], jnp.bfloat16) * jnp.ones((1, 96), jnp.bfloat16)
    found = x86.product(x, kernel.integers, jnp.float32, scale=kernel.scale)
    wanted = exact(x) @ (exact(kernel.integers) * exact(kernel.scale))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def kernel_of(kind, *shape, seed):
    """A kernel, and what its columns are multiplied by."""
    kernel = numbers(*shape, seed=seed, dtype=jnp.float32)
    if kind != jnp.int8:
        return kernel.astype(kind), None
    return quantized.quantize(kernel)[:2]


# 4,128: more than is laid out at a time, of bytes too.
ALL = pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32, jnp.int8])


@needs_x86
@ALL
def test_a_row_is_the_same_in_any_company(kind):
    kernel, scale = kernel_of(kind, 4128, 96, seed=1)
    x = numbers(77, 4128, dtype=jnp.bfloat16 if kind == jnp.int8 else kind)
    together = x86.product(x, kernel, jnp.float32, scale=scale)
    for row in (0, 40, 76):
        alone = x86.product(x[row : row + 1], kernel, jnp.float32, scale=scale)
        np.testing.assert_array_equal(alone[0], together[row])


@needs_x86
@ALL
def test_several_callers_do_not_disturb_each_other(kind):
    kernels = [kernel_of(kind, 4128, 64, seed=i) for i in range(6)]
    x = numbers(130, 4128, seed=9, dtype=jnp.bfloat16 if kind == jnp.int8 else kind)
    run = jax.jit(lambda kernel, scale: x86.product(x, kernel, "float32", scale=scale))
    wanted = [np.asarray(run(*kernel)) for kernel in kernels]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = list(pool.map(lambda kernel: np.asarray(run(*kernel)), kernels))
            for ours, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(ours, other)


@needs_x86
@ALL
@pytest.mark.parametrize("real", [0, 1, 67, 130])
def test_rows_after_the_real_ones_are_zero_and_the_others_the_same(real, kind):
    x = numbers(130, 96, dtype=jnp.bfloat16 if kind == jnp.int8 else kind)
    kernel, scale = kernel_of(kind, 96, 64, seed=1)

    multiply = jax.jit(functools.partial(x86.product, out_dtype="float32"))
    all_of_them = multiply(x, kernel, scale=scale)
    some = multiply(x, kernel, scale=scale, real=jnp.int32(real))
    np.testing.assert_array_equal(some[:real], all_of_them[:real])
    assert exact(all_of_them).all() and not exact(some[real:]).any()


@needs_x86
@pytest.mark.parametrize("real", [-1, 6])
def test_more_real_rows_than_there_are_are_refused(real):
    x, kernel = numbers(5, 32), numbers(32, 64, seed=1)
    with pytest.raises(Exception, match="Sizes that do not fit"):
        x86.product(x, kernel, "float32", real=real).block_until_ready()


@needs_x86
def test_padding_behind_all_tokens_is_not_computed():
    layer = dense.Dense(
        64, (None, "mlp"), nn.initializers.ones_init(), dtype="bfloat16"
    )
    x = numbers(3, 4, 32)
    params = layer.init(jax.random.key(0), x)
    rows = jnp.array([[1, 2, 2, 0], [1, 1, 0, 0], [0] * 4])

    @jax.jit
    def within(x, rows):
        with x86.enabled(x86.extent_of(rows)):
            return layer.apply(params, x)

    found = exact(within(x, rows)).reshape(12, -1)
    np.testing.assert_array_equal(
        found[:6], exact(layer.apply(params, x))[:2].reshape(8, -1)[:6]
    )
    assert not found[6:].any()
    assert not exact(within(x, jnp.zeros_like(rows))).any()
    # What is of another shape is not of tokens, but of distances, say.
    assert exact(within(x.reshape(1, 12, 32), rows)).any(-1).all()


@needs_x86
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_with_an_int8_kernel_gives_what_xla_gives(dtype):
    layer = dense.Dense(
        64, (None, "mlp"), nn.initializers.zeros_init(), use_bias=True, dtype="bfloat16"
    )
    kernel = quantized.quantize(numbers(96, 64, seed=1, dtype=jnp.float32))
    names = ("kernel", "kernel_scale", "kernel_sum")
    params = dict(zip(names, kernel, strict=True)) | {"bias": jnp.arange(64.0)}
    x = numbers(2, 5, 96)

    def apply(params, x):
        return layer.apply({"params": params}, x, dtype)

    def within(params, x):
        with x86.enabled():
            return apply(params, x)

    assert uses_x86(within, params, x) and not uses_x86(apply, params, x)
    found, wanted = exact(within(params, x)), exact(apply(params, x))
    # XLA's way rounds rows as well, as bytes are, and in bfloat16 the bias's sum again.
    limit = 2.0**-7 if dtype == "bfloat16" else 1e-6
    limit = limit if x86.rounds_to_int8() else 2e-2
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit * wanted.max())


@needs_x86
def test_int8_kernels_whose_sums_are_too_large_are_left_to_xla():
    x, kernel = jnp.zeros((1, 65568), jnp.bfloat16), jnp.zeros((65568, 32), jnp.int8)
    with x86.enabled():
        assert x86.can_multiply(x[:, 32:], kernel[32:], jnp.float32)
        assert not x86.can_multiply(x, kernel, jnp.float32)
        assert not x86.can_multiply(x[:, :0], kernel[:0], jnp.float32)
        assert not x86.can_multiply(x, kernel[:, :0], jnp.float32)


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
        bias = relative_bias.DistanceBias(values, q_length)
    elif bias_of is not None:
        shape = (bias_of, 3, q_length, kv_length)
        bias = 2 * numbers(*shape, seed=3, dtype=jnp.float32)
    q = jnp.ones((2, q_length), jnp.int32)
    found = jax.jit(x86.attention)(query, key, value, bias, q, kv)
    wanted = attention.dot_product_attention(
        *(x.astype(jnp.float32) for x in (query, key, value)),
        q_segments=q,
        kv_segments=kv,
        bias=bias,
    )
    # bfloat16: weights and result are rounded to 8 bits.
    limit = (2.0**-7 if kind == jnp.bfloat16 else 2e-6) * np.abs(wanted).max()
    np.testing.assert_allclose(exact(found), wanted, rtol=0, atol=limit)


@needs_x86
@pytest.mark.parametrize("q_length", [8, 20, 25])
def test_a_bias_of_other_distances_is_not_taken(q_length):
    query, key = heads(20), heads(12, seed=1)
    values = jnp.zeros((3, q_length + 11))
    bias = relative_bias.DistanceBias(values, q_length)
    with x86.enabled():
        assert x86.can_attend(query, key, key, bias) == (q_length == 20)
        one_for_all = relative_bias.DistanceBias(values[:1], q_length)
        assert not x86.can_attend(query, key, key, one_for_all)


@needs_x86
@BOTH
def test_attention_to_nothing_is_zero_and_hidden_keys_count_for_nothing(kind):
    query, value = heads(40, dtype=kind), heads(40, seed=1, dtype=kind)
    q, kv = segments(40, 40, length=40), segments(0, 23, length=40)
    found = x86.attention(query, query, value, None, q, kv)
    assert not np.asarray(found[0]).any()
    cut = [x[:, :23] for x in (query, value)]
    np.testing.assert_array_equal(
        found[1], x86.attention(query, *cut, None, q, kv[:, :23])[1]
    )


@needs_x86
@BOTH
@pytest.mark.parametrize("bias_of", [None, "distances", "pairs"])
def test_attention_stays_within_segments_as_if_each_were_alone(bias_of, kind):
    lengths, gap = (40, 1, 23), 5
    query, key, value = (heads(80, seed=i, dtype=kind)[:1] for i in range(3))
    values = 2 * numbers(3, 159, seed=3, dtype=jnp.float32)
    bias = relative_bias.DistanceBias(values, 80)
    if bias_of == "pairs":
        bias = 2 * numbers(1, 3, 80, 80, seed=3, dtype=jnp.float32)
    numbers_of = [0] * gap + [3] * 40 + [1] + [7] * 23 + [0] * 11
    packed = jnp.array([numbers_of])
    bias = None if bias_of is None else bias
    found = x86.attention(query, key, value, bias, packed, packed)
    start = gap
    for length in lengths:
        own = slice(start, start + length)
        part = [x[:, own] for x in (query, key, value)]
        own_bias = bias
        if bias_of == "pairs":
            own_bias = bias[:, :, own, own]
        elif bias_of:
            own_bias = relative_bias.DistanceBias(
                values[:, 80 - length : 79 + length], length
            )
        one = jnp.ones((1, length), jnp.int32)
        alone = x86.attention(*part, own_bias, one, one)
        np.testing.assert_array_equal(exact(found[:, own]), exact(alone))
        start += length
    assert not exact(found[:, :gap]).any() and not exact(found[:, start:]).any()


@needs_x86
def test_queries_attend_to_the_keys_of_their_segment_wherever_those_are():
    query, key = heads(9)[:1], heads(12, seed=1)[:1]
    q, kv = jnp.array([[2] * 4 + [1] * 3 + [4] * 2]), jnp.array([[1] * 5 + [2] * 7])
    found = x86.attention(query, key, key, None, q, kv)
    wanted = attention.dot_product_attention(
        query, key, key, q_segments=q, kv_segments=kv
    )
    np.testing.assert_allclose(exact(found), exact(wanted), rtol=0, atol=2e-2)
    assert not exact(found[:, 7:]).any() and exact(found[:, :7]).all()


@needs_x86
@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_in_several_places_is_refused(which):
    part, rows = heads(5)[:1], [jnp.ones((1, 5), jnp.int32)] * 2
    rows[which] = jnp.array([[1, 1, 2, 1, 1]])
    with pytest.raises(Exception, match="in several places"):
        x86.attention(part, part, part, None, *rows).block_until_ready()


@needs_x86
@BOTH
def test_attention_of_a_row_is_the_same_in_any_company(kind):
    query, rows = heads(37, dtype=kind), segments(37, 37, length=37)
    together = x86.attention(query, query, query, None, rows, rows)
    alone = x86.attention(*[query[1:]] * 3, None, rows[1:], rows[1:])
    np.testing.assert_array_equal(alone[0], together[1])


@needs_x86
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@BOTH
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(35, 96), (1, 1024)])
def test_norm_is_that_of_float64(rows, size, with_bias, kind, dtype):
    # Far from 0: a mean square minus a squared mean would lose the digits.
    x = (3 * numbers(2, rows, size, dtype=jnp.float32) + 50).astype(kind)
    scale, plus = (numbers(size, seed=i, dtype=jnp.float32) for i in (1, 2))
    bias = plus if with_bias else None
    found = jax.jit(lambda *xs: x86.norm(0.5, dtype, *xs))(x, scale, bias)
    assert found.dtype == dtype and found.shape == x.shape
    wide = exact(x)
    if with_bias:
        wide = wide - wide.mean(-1, keepdims=True)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.5) * exact(scale)
    wanted += exact(plus) if with_bias else 0
    limit = (2.0**-8 if dtype == "bfloat16" else 2e-6) * np.abs(wanted).max()
    np.testing.assert_allclose(exact(found), wanted, rtol=0, atol=limit)


@needs_x86
@BOTH
@pytest.mark.parametrize("with_bias", [False, True])
def test_norm_of_a_sum_adds_in_float32(with_bias, kind):
    x, addend = (numbers(2, 5, 96, seed=i, dtype=kind) for i in (0, 1))
    scale, plus = (numbers(96, seed=i, dtype=jnp.float32) for i in (2, 3))
    bias = plus if with_bias else None
    found = x86.norm(1e-6, jnp.float32, x, scale, bias, addend)
    wide = x.astype(jnp.float32) + addend.astype(jnp.float32)
    wanted = x86.norm(1e-6, jnp.float32, wide, scale, bias)
    np.testing.assert_array_equal(found, wanted)


@needs_x86
def test_norm_of_what_is_not_a_number_is_none():
    x = numbers(1, 3, 64).at[0, 1, 40].set(jnp.nan)
    for bias in (None, jnp.zeros(64)):
        found = np.asarray(x86.norm(1e-6, jnp.float32, x, jnp.ones(64), bias))
        assert np.isnan(found[0, 1]).all() and np.isfinite(found[0, [0, 2]]).all()


@needs_x86
@pytest.mark.parametrize(("scale", "bias"), [(32, 64), (64, 32)])
def test_norm_of_other_sizes_is_refused(scale, bias):
    vectors = jnp.zeros(scale), jnp.zeros(bias)
    with pytest.raises(Exception, match="Sizes that do not fit"):
        x86.norm(1e-6, jnp.float32, numbers(1, 3, 64), *vectors).block_until_ready()


def uses_x86(function, *arguments):
    return "prottrans_jax_" in jax.jit(function).lower(*arguments).as_text()


def block(dtype=jnp.bfloat16, d_ff=96):
    return mlp.MLP(
        d_ff=d_ff,
        activations=("gelu_exact",),
        dropout_rate=0.0,
        deterministic=True,
        use_bias=True,
        dtype=dtype,
    )


def enabled(module):
    def apply(params, x):
        with x86.enabled():
            return module.apply(params, x)

    return apply


@needs_x86
def test_used_where_enabled_and_for_whole_blocks_alone():
    x = numbers(2, 5, 32, dtype=jnp.float32)
    for module, wanted in (
        (block(), True),
        (block(dtype=jnp.float32), True),
        (block(dtype=jnp.float16), False),
        (block(d_ff=100), False),
    ):
        params = module.init(jax.random.key(0), x)
        assert uses_x86(enabled(module), params, x) == wanted
        assert not uses_x86(module.apply, params, x)


@needs_x86
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_norms_are_used_where_enabled_and_for_whole_blocks_alone(name):
    module = getattr(norms, name)(epsilon=1e-6)
    for size, wanted in ((64, True), (40, False)):
        x = numbers(2, 5, size, dtype=jnp.float32)
        params = module.init(jax.random.key(0), x)
        assert uses_x86(enabled(module), params, x) == wanted
        assert not uses_x86(module.apply, params, x)
        both = enabled(module)(params, x), module.apply(params, x)
        np.testing.assert_allclose(*both, rtol=0, atol=2e-6)


@needs_x86
def test_layer_norm_adds_what_has_the_same_type_and_shape_as_x():
    module, x = norms.LayerNorm(epsilon=1e-6), numbers(2, 5, 64, dtype=jnp.float32)
    params = module.init(jax.random.key(0), x)
    for addend, wanted in (
        (numbers(2, 5, 64, seed=1, dtype=jnp.float32), True),
        (numbers(2, 5, 64, seed=1), False),
        (numbers(5, 64, seed=1, dtype=jnp.float32), False),
    ):

        def add(params, x, addend=addend):
            with x86.enabled():
                return module.apply(params, x, addend)

        assert uses_x86(add, params, x) == wanted
        summed = module.apply(params, x + addend)
        np.testing.assert_allclose(add(params, x), summed, rtol=0, atol=2e-6)


@needs_x86
def test_block_gives_what_xla_gives():
    module, x = block(), numbers(2, 5, 32, dtype=jnp.float32)
    params = module.init(jax.random.key(0), x)
    found = exact(enabled(module)(params, x))
    wanted = exact(module.apply(params, x))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-2)
    assert np.abs(wanted).max() > 0.5
    assert found.dtype == wanted.dtype


def test_everything_works_without_the_compiled_part(monkeypatch):
    module, x = block(), numbers(2, 5, 32, dtype=jnp.float32)
    params = module.init(jax.random.key(0), x)
    monkeypatch.setattr(x86, "is_usable", lambda: False)
    assert not uses_x86(enabled(module), params, x)
    np.testing.assert_array_equal(
        exact(enabled(module)(params, x)), exact(module.apply(params, x))
    )


@needs_x86
@BOTH
@pytest.mark.parametrize(
    ("x", "kernel", "bias"),
    [((5, 40), (40, 32), 32), ((5, 32), (64, 32), 32), ((5, 32), (32, 64), 32)],
)
def test_other_sizes_are_refused_not_read_past_their_end(x, kernel, bias, kind):
    x, kernel = numbers(*x, dtype=kind), numbers(*kernel, dtype=kind)
    with pytest.raises(Exception, match="Sizes that do not fit"):
        x86.product(x, kernel, jnp.float32, bias=jnp.zeros(bias)).block_until_ready()


@needs_x86
@pytest.mark.parametrize("bias", [(37, 37), (1, 73)])
@pytest.mark.parametrize("name", ["key", "value", "bias", "q_segments", "kv_segments"])
def test_attention_of_other_sizes_is_refused(name, bias):
    arrays = {
        **{part: heads(37) for part in ("query", "key", "value")},
        "bias": jnp.zeros((1, 3, *bias)),
        "q_segments": jnp.ones((2, 37), jnp.int32),
        "kv_segments": jnp.ones((2, 37), jnp.int32),
    }
    arrays[name] = arrays[name][:, 1:]
    with pytest.raises(Exception, match="Sizes that do not fit"):
        x86.attention(**arrays).block_until_ready()


@needs_x86
@BOTH
@pytest.mark.parametrize("name", mlp.ACTIVATIONS)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_what_is_not_a_number_stays_so(name, bits, kind):
    """Or broken weights would give plausible vectors."""
    x = np.array(numbers(3, 64, dtype=jnp.float32))
    x.view(np.uint32)[1, 5] = bits
    x, kernel = jnp.asarray(x).astype(kind), numbers(64, 32, seed=1, dtype=kind)
    found = np.asarray(x86.product(x, kernel, jnp.float32, activation=name))
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()


@needs_x86
@BOTH
@pytest.mark.parametrize("number", range(3))
def test_attention_to_what_is_not_a_number_is_none(number, kind):
    arrays = [heads(5, dtype=kind) for _ in range(3)]
    arrays[number] = arrays[number].at[0, 2, 1, 3].set(jnp.nan)
    rows = segments(5, 5, length=5)
    found = np.asarray(x86.attention(*arrays, None, rows, rows), np.float32)
    assert np.isnan(found[0, 2, 1]).any()
    assert np.isfinite(found[1]).all() and np.isfinite(found[0, :, 0]).all()


@needs_x86
def test_works_where_float64_is_allowed():
    with jax.enable_x64(True):
        module, x = block(), numbers(2, 5, 32, dtype=jnp.float32)
        params = module.init(jax.random.key(0), x)
        assert np.isfinite(exact(enabled(module)(params, x))).all()
        part = heads(5)
        rows = segments(5, 3, length=5).astype(jnp.int64)
        assert rows.dtype == jnp.int64
        x86.attention(part, part, part, None, rows, rows).block_until_ready()


def attend(*parts, **keywords):
    with x86.enabled():
        return attention.dot_product_attention(
            *parts,
            q_segments=jnp.ones((2, 9), jnp.int32),
            kv_segments=jnp.ones((2, 9), jnp.int32),
            **keywords,
        )


@needs_x86
@pytest.mark.parametrize("block_size", [None, 4])
def test_causal_attention_is_not_taken_for_another(block_size):
    parts = [heads(9, seed=seed) for seed in range(3)]
    for causal in (False, True):
        way = functools.partial(attend, causal=causal, block_size=block_size)
        assert uses_x86(way, *parts) != causal


@needs_x86
@BOTH
def test_blockwise_attention_with_a_bias_is_the_same(kind):
    parts = [heads(9, seed=seed, dtype=kind) for seed in range(3)]
    bias = relative_bias.DistanceBias(2 * numbers(3, 17, dtype=jnp.float32), 9)
    blockwise = functools.partial(attend, bias=bias, block_size=4)
    assert uses_x86(blockwise, *parts)
    full = attend(*parts, bias=bias.block(0, 0, 9, 9))
    np.testing.assert_array_equal(exact(blockwise(*parts)), exact(full))
