"""Products of `kernels.x86` against float64 sums, and when they are used."""

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

from cases.x86_cases import BOTH, enabled, exact, needs_x86, numbers, uses_x86
from prottrans_jax.kernels import frozen, quantized, x86, x86_sources
from prottrans_jax.layers import dense, mlp

_VECTORS = {"avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512dq"}
_VECTORS |= {"avx512vl", "avx2", "fma"}
_TILES = {"amx_tile", "amx_bf16", "amx_int8"}
_units = x86.units
pytestmark = pytest.mark.usefixtures("x86_unit")


def test_usable_where_the_cpu_has_the_instructions():
    """Otherwise nobody would notice that the module is no longer compiled."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("not compiled for this kind of machine")
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    info = pathlib.Path("/proc/cpuinfo").read_text()
    flags = set(info.partition("flags")[2].partition("\n")[0].split())
    expected = [("amx", _VECTORS | _TILES), ("avx512", _VECTORS)]
    assert _units() == tuple(name for name, needs in expected if flags >= needs)


@needs_x86
@pytest.mark.parametrize("says_its_source", [True, False])
def test_not_used_when_compiled_from_another_source(
    says_its_source, tmp_path, monkeypatch
):
    """As after an update of a checkout: the handlers might take other arguments."""
    (tmp_path / "another.cc").write_text("another")
    monkeypatch.setattr(x86_sources, "FOLDER", tmp_path)
    if not says_its_source:
        compiled = importlib.import_module("prottrans_jax.kernels._x86")
        monkeypatch.delattr(compiled, "SOURCE_SHA256")
    units, reason = x86._register.__wrapped__()
    assert not units and "Install the package again" in reason


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
    actual = jax.jit(lambda x, kernel: x86.product(x, kernel, dtype))(x, kernel)
    assert actual.dtype == dtype
    expected = exact(x) @ exact(kernel)
    # What another's float32 is off by; bfloat16 rounds once more, to 8 bits.
    wide = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
    limit = 2 * np.abs(wide - expected).max(initial=0)
    if dtype == "bfloat16":
        limit += 2.0**-8 * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(exact(actual), expected, rtol=0, atol=limit)


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
    actual = x86.product(x, kernel, jnp.float32, bias=bias, activation=name)
    sums = exact(x) @ exact(kernel) + exact(bias)
    assert np.abs(sums).max() > 60  # Where exp() would overflow.
    np.testing.assert_allclose(actual, by_hand(name, sums), rtol=2e-6, atol=3e-5)


@needs_x86
def test_gelu_errs_by_the_last_digits_of_1_at_most():
    # Numbers of a row are alike: a matrix unit rounds them to a part of the largest.
    x = jnp.linspace(-9, 9, 96 * 32).reshape(96, 32)
    actual = x86.product(x, jnp.eye(32), jnp.float32, activation="gelu_exact")
    expected = by_hand("gelu_exact", exact(x))
    limit = 1.5e-7 * np.abs(exact(x)) + 1e-7 * np.abs(expected) + 5e-8
    np.testing.assert_array_less(np.abs(actual - expected), limit)


@needs_x86
def test_gelu_of_nan_and_infinity():
    x = numbers(3, 32, dtype=jnp.float32)
    bias = jnp.zeros(32).at[:3].set(jnp.array([jnp.nan, jnp.inf, 1e30]))
    zeros = jnp.zeros((32, 32))
    actual = x86.product(x, zeros, jnp.float32, bias=bias, activation="gelu_exact")
    expected = [jnp.nan, jnp.inf, 1e30, *[0] * 29]
    np.testing.assert_array_equal(actual, np.tile(np.float32(expected), (3, 1)))


def in_order(x, kernel):
    """float32 products added in the order of the inputs: the same on every machine.

    A BLAS chooses the order by CPU, and with it the error.
    """
    total = np.zeros((len(x), kernel.shape[1]), np.float32)
    for i in range(len(kernel)):
        total += x[:, i, None] * kernel[i]
    return exact(total)


@needs_x86
def test_float32_is_accurate_for_numbers_of_different_sizes():
    scale = np.exp2(np.random.default_rng(2).integers(-40, 40, 544))
    x = np.asarray(numbers(70, 544, dtype=jnp.float32) * scale, np.float32)
    kernel = np.asarray(numbers(544, 32, seed=1, dtype=jnp.float32), np.float32)
    kernel = kernel / scale[:, None].astype(np.float32)
    expected = exact(x) @ exact(kernel)
    actual = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    off, others = np.abs(actual - expected), np.abs(in_order(x, kernel) - expected)
    assert off.max() <= 1.5 * others.max() and off.mean() <= others.mean()


@needs_x86
def test_float32_is_accurate_beside_large_numbers_of_small_weight():
    """As in models whose features are some hundreds of times larger than others."""
    x = np.array(numbers(40, 1024, dtype=jnp.float32))
    kernel = np.array(numbers(1024, 64, seed=1, dtype=jnp.float32))
    x[:, [7, 300]] *= [[1000, -400]]
    kernel[[7, 300]] *= [[1e-3], [1e-5]]
    expected = exact(x) @ exact(kernel)
    actual = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    off, others = np.abs(actual - expected), np.abs(in_order(x, kernel) - expected)
    assert off.max() <= others.max() and off.mean() <= others.mean()


@needs_x86
@pytest.mark.parametrize(("one", "others"), [(1, 1e-20), (1, 1e-4), (1e10, 1e-28)])
def test_float32_with_one_outlier_in_the_kernel(one, others):
    x = np.asarray(numbers(5, 64, dtype=jnp.float32))
    kernel = np.array(numbers(64, 32, seed=1, dtype=jnp.float32))
    kernel[7, 1:] *= others
    kernel[7, 0] = one
    expected = exact(x) @ exact(kernel)
    actual = exact(x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32))
    size = np.linalg.norm(exact(x), axis=1)[:, None] * np.linalg.norm(
        exact(kernel), axis=0
    )
    np.testing.assert_array_less(np.abs(actual - expected), 3e-7 * size)


@needs_x86
def test_float32_of_any_magnitude_is_accurate():
    size = np.array([1e-28, 1e-10, 1, 1e10, 1e28, 0])
    x = np.asarray(numbers(6, 96, dtype=jnp.float32) * size[:, None], np.float32)
    kernel = np.array(numbers(96, 64, seed=1, dtype=jnp.float32))
    kernel[:, :6] *= size[::-1]
    kernel[:, 40] = 0
    actual = x86.product(jnp.asarray(x), jnp.asarray(kernel), jnp.float32)
    expected = exact(x) @ exact(kernel)
    limit = 1e-6 * np.linalg.norm(exact(x), axis=1)[:, None]
    limit = limit * np.linalg.norm(exact(kernel), axis=0)
    seen = (np.abs(expected) < 3e38) & (np.abs(expected) > 1e-36)
    assert seen.sum() > 6 * 50
    assert (np.abs(exact(actual) - expected) <= limit)[seen].all()
    assert not np.asarray(actual)[5].any() and not np.asarray(actual)[:5, 40].any()


@needs_x86
@BOTH
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nan_and_infinity_stay_in_their_row_or_column(value, kind):
    x = numbers(3, 64, dtype=kind).at[1, 40].set(value)
    kernel = numbers(64, 32, seed=1, dtype=kind)
    actual = np.asarray(x86.product(x, kernel, jnp.float32))
    assert not np.isfinite(actual[1]).any()
    assert np.isfinite(actual[[0, 2]]).all()
    actual = np.asarray(x86.product(x[::2], kernel.at[9, 3].set(value), jnp.float32))
    assert not np.isfinite(actual[:, 3]).any()
    assert np.isfinite(np.delete(actual, 3, 1)).all()


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
    actual = x86.product(x, kernel.integers, jnp.float32, **more)
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
    expected = np.maximum(wide @ scaled + exact(bias), 0)
    limit = 1e-6 * np.abs(wide) @ np.abs(scaled) + undecided * np.abs(scaled).max(0)
    np.testing.assert_array_less(np.abs(actual - expected), limit)


@needs_x86
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_nan_and_infinity_stay_in_their_row_with_int8_kernels(value):
    kernel = quantized.quantize(numbers(96, 32, seed=1, dtype=jnp.float32))
    x = numbers(3, 96).at[1, 40].set(value)
    actual = np.asarray(
        x86.product(x, kernel.integers, jnp.float32, scale=kernel.scale)
    )
    assert not np.isfinite(actual[1]).any() and np.isfinite(actual[[0, 2]]).all()


@needs_x86
def test_int8_kernels_with_rows_of_one_number():
    kernel = quantized.quantize(numbers(96, 32, seed=1, dtype=jnp.float32))
    x = jnp.asarray([[0.0], [2.5]], jnp.bfloat16) * jnp.ones((1, 96), jnp.bfloat16)
    actual = x86.product(x, kernel.integers, jnp.float32, scale=kernel.scale)
    expected = exact(x) @ (exact(kernel.integers) * exact(kernel.scale))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def kernel_of(kind, *shape, seed):
    """A kernel and the scales of its columns."""
    kernel = numbers(*shape, seed=seed, dtype=jnp.float32)
    if kind != jnp.int8:
        return kernel.astype(kind), None
    return quantized.quantize(kernel)[:2]


# 4,128: more than is laid out at a time, of bytes too.
ALL = pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32, jnp.int8])


@needs_x86
@ALL
def test_a_row_does_not_depend_on_other_rows(kind):
    kernel, scale = kernel_of(kind, 4128, 96, seed=1)
    x = numbers(77, 4128, dtype=jnp.bfloat16 if kind == jnp.int8 else kind)
    together = x86.product(x, kernel, jnp.float32, scale=scale)
    for row in (0, 40, 76):
        alone = x86.product(x[row : row + 1], kernel, jnp.float32, scale=scale)
        np.testing.assert_array_equal(alone[0], together[row])


@needs_x86
@ALL
def test_concurrent_calls_do_not_interfere(kind):
    kernels = [kernel_of(kind, 4128, 64, seed=i) for i in range(6)]
    x = numbers(130, 4128, seed=9, dtype=jnp.bfloat16 if kind == jnp.int8 else kind)
    run = jax.jit(lambda kernel, scale: x86.product(x, kernel, "float32", scale=scale))
    expected = [np.asarray(run(*kernel)) for kernel in kernels]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            actual = list(pool.map(lambda kernel: np.asarray(run(*kernel)), kernels))
            for ours, other in zip(actual, expected, strict=True):
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
def test_a_number_of_real_rows_above_all_rows_is_refused(real):
    x, kernel = numbers(5, 32), numbers(32, 64, seed=1)
    with pytest.raises(Exception, match="Sizes do not match"):
        x86.product(x, kernel, "float32", real=real).block_until_ready()


@needs_x86
def test_padding_after_the_last_token_is_not_computed():
    layer = dense.Dense(
        64, (None, "mlp"), nn.initializers.ones_init(), dtype="bfloat16"
    )
    x = numbers(3, 4, 32)
    params = layer.init(jax.random.key(0), x)
    rows = jnp.array([[1, 2, 2, 0], [1, 1, 0, 0], [0] * 4])

    @jax.jit
    def within(x, rows):
        with frozen.scope():
            return layer.apply(params, x, segments=rows)

    actual = exact(within(x, rows)).reshape(12, -1)
    np.testing.assert_array_equal(
        actual[:6], exact(layer.apply(params, x))[:2].reshape(8, -1)[:6]
    )
    assert not actual[6:].any()
    assert not exact(within(x, jnp.zeros_like(rows))).any()
    # Without segments: what has no padding, such as encodings of distances.
    assert exact(within(x, None)).any(-1).all()


@needs_x86
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_with_an_int8_kernel_agrees_with_xla(dtype):
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
        with frozen.scope():
            return apply(params, x)

    assert uses_x86(within, params, x) and not uses_x86(apply, params, x)
    actual, expected = exact(within(params, x)), exact(apply(params, x))
    # XLA's way rounds rows as well, as bytes are, and in bfloat16 the bias's sum again.
    limit = 2.0**-7 if dtype == "bfloat16" else 1e-6
    limit = limit if x86.rounds_to_int8() else 2e-2
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * expected.max())


@needs_x86
def test_int8_kernels_with_sums_beyond_int32_use_xla():
    x, kernel = jnp.zeros((1, 65568), jnp.bfloat16), jnp.zeros((65568, 32), jnp.int8)
    with frozen.scope():
        assert x86.can_multiply(x[:, 32:], kernel[32:], jnp.float32)
        assert not x86.can_multiply(x, kernel, jnp.float32)
        assert not x86.can_multiply(x[:, :0], kernel[:0], jnp.float32)
        assert not x86.can_multiply(x, kernel[:, :0], jnp.float32)


def block(dtype=jnp.bfloat16, d_ff=96):
    return mlp.MLP(
        d_ff=d_ff,
        activations=("gelu_exact",),
        dropout_rate=0.0,
        deterministic=True,
        use_bias=True,
        dtype=dtype,
    )


@needs_x86
def test_products_are_used_only_where_enabled_and_for_whole_blocks():
    x = numbers(2, 5, 32, dtype=jnp.float32)
    for module, expected in (
        (block(), True),
        (block(dtype=jnp.float32), True),
        (block(dtype=jnp.float16), False),
        (block(d_ff=100), False),
    ):
        params = module.init(jax.random.key(0), x)
        assert uses_x86(enabled(module), params, x) == expected
        assert not uses_x86(module.apply, params, x)


@needs_x86
def test_block_agrees_with_xla():
    module, x = block(), numbers(2, 5, 32, dtype=jnp.float32)
    params = module.init(jax.random.key(0), x)
    actual = exact(enabled(module)(params, x))
    expected = exact(module.apply(params, x))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-2)
    assert np.abs(expected).max() > 0.5
    assert actual.dtype == expected.dtype


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
def test_wrong_sizes_are_refused_before_reading(x, kernel, bias, kind):
    x, kernel = numbers(*x, dtype=kind), numbers(*kernel, dtype=kind)
    with pytest.raises(Exception, match="Sizes do not match"):
        x86.product(x, kernel, jnp.float32, bias=jnp.zeros(bias)).block_until_ready()


@needs_x86
@BOTH
@pytest.mark.parametrize("name", mlp.ACTIVATIONS)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_nan_stays_nan(name, bits, kind):
    """Otherwise broken weights would give plausible vectors."""
    x = np.array(numbers(3, 64, dtype=jnp.float32))
    x.view(np.uint32)[1, 5] = bits
    x, kernel = jnp.asarray(x).astype(kind), numbers(64, 32, seed=1, dtype=kind)
    actual = np.asarray(x86.product(x, kernel, jnp.float32, activation=name))
    assert np.isnan(actual[1]).all() and np.isfinite(actual[[0, 2]]).all()


@needs_x86
def test_works_where_float64_is_allowed():
    with jax.enable_x64(True):
        module, x = block(), numbers(2, 5, 32, dtype=jnp.float32)
        params = module.init(jax.random.key(0), x)
        assert np.isfinite(exact(enabled(module)(params, x))).all()
