"""The CPU's matrix unit: sums in float64, attention as XLA computes it, and when."""

import concurrent.futures
import math
import pathlib
import platform
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import amx, attention, mlp, quantized

needs_amx = pytest.mark.skipif(
    not amx.is_usable(), reason="no AMX, or the package was not compiled for it"
)
_FLAGS = {"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512dq", "avx512_bf16"}


def numbers(*shape, seed=0, dtype=jnp.bfloat16):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, dtype)


def exact(x):
    return np.asarray(x, np.float64)


def test_usable_where_the_cpu_has_the_unit():
    """Or nobody would see that the package is not compiled any more."""
    if platform.machine() != "x86_64" or shutil.which("g++") is None:
        pytest.skip("another kind of CPU, or no compiler")
    info = pathlib.Path("/proc/cpuinfo").read_text()
    flags = set(info.partition("flags")[2].partition("\n")[0].split())
    assert amx.is_usable() == (flags >= _FLAGS)


# Deeper than 1,024 goes in parts; 300 rows are ten blocks, the last of 12 rows.
@needs_amx
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 32, 96), (33, 64, 32), (300, 1088, 288), (5, 3072, 544)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_is_the_sum(rows, inputs, outputs, dtype):
    x, kernel = numbers(rows, inputs), numbers(inputs, outputs, seed=1)
    found = jax.jit(lambda x, kernel: amx.product(x, kernel, dtype))(x, kernel)
    assert found.dtype == dtype
    wanted = exact(x) @ exact(kernel)
    # float32 sums of products that are exact in it; bfloat16 rounds once.
    limit = inputs**0.5 * (2e-6 if dtype == jnp.float32 else 2e-2)
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


@needs_amx
@pytest.mark.parametrize("name", mlp.ACTIVATIONS)
def test_bias_and_activation_follow_in_float32(name):
    x, kernel = 4 * numbers(7, 32), numbers(32, 64, seed=1)
    bias = numbers(64, seed=2, dtype=jnp.float32)
    found = amx.product(x, kernel, jnp.float32, bias=bias, activation=name)
    sums = exact(x) @ exact(kernel) + exact(bias)
    assert np.abs(sums).max() > 60  # Where exp() would overflow.
    np.testing.assert_allclose(found, by_hand(name, sums), rtol=2e-6, atol=3e-5)


@needs_amx
def test_int8_kernels_are_scaled_by_column():
    x = numbers(70, 1056)
    kernel = quantized.quantize(numbers(1056, 160, seed=1, dtype=jnp.float32))
    found = amx.product(x, kernel.integers, jnp.float32, scale=kernel.scale)
    wanted = exact(x) @ (exact(kernel.integers) * exact(kernel.scale))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@needs_amx
def test_a_row_is_the_same_in_any_company():
    x, kernel = numbers(77, 1088), numbers(1088, 96, seed=1)
    together = amx.product(x, kernel, jnp.float32)
    for row in (0, 40, 76):
        alone = amx.product(x[row : row + 1], kernel, jnp.float32)
        np.testing.assert_array_equal(alone[0], together[row])


@needs_amx
def test_several_callers_do_not_disturb_each_other():
    kernels = [numbers(1056, 64, seed=i) for i in range(6)]
    x = numbers(130, 1056, seed=9)
    run = jax.jit(lambda kernel: amx.product(x, kernel, jnp.float32))
    wanted = [np.asarray(run(kernel)) for kernel in kernels]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = list(pool.map(lambda kernel: np.asarray(run(kernel)), kernels))
            for ours, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(ours, other)


def heads(length, count=3, size=64, seed=0):
    return numbers(2, length, count, size, seed=seed) / math.sqrt(8)


def segments(*lengths, length):
    return (jnp.arange(length) < jnp.array(lengths)[:, None]).astype(jnp.int32)


@needs_amx
@pytest.mark.parametrize("bias_rows", [None, 1, 2])
@pytest.mark.parametrize(
    ("q_length", "kv_length", "size"), [(5, 5, 32), (70, 45, 64), (33, 96, 128)]
)
def test_attention_is_that_of_float32(q_length, kv_length, size, bias_rows):
    query = heads(q_length, size=size)
    key, value = (
        heads(kv_length, size=size, seed=1),
        heads(kv_length, size=size, seed=2),
    )
    kv = segments(kv_length, kv_length - 4, length=kv_length)
    bias = None
    if bias_rows is not None:
        shape = (bias_rows, 3, q_length, kv_length)
        bias = 2 * numbers(*shape, seed=3, dtype=jnp.float32)
    mask = jnp.where(kv == 0, attention.MASKED, 0.0)
    found = jax.jit(amx.attention)(query, key, value, bias, mask)
    wanted = attention.dot_product_attention(
        *(x.astype(jnp.float32) for x in (query, key, value)),
        q_segments=jnp.ones((2, q_length), jnp.int32),
        kv_segments=kv,
        bias=bias,
    )
    # Weights and result are rounded to 8 bits.
    limit = 2.0**-7 * np.abs(wanted).max()
    np.testing.assert_allclose(exact(found), wanted, rtol=0, atol=limit)


@needs_amx
def test_attention_to_nothing_is_zero_and_hidden_keys_count_for_nothing():
    query, value = heads(40), heads(40, seed=1)
    kv = segments(0, 23, length=40)
    mask = jnp.where(kv == 0, attention.MASKED, 0.0)
    found = amx.attention(query, query, value, None, mask)
    assert not np.asarray(found[0]).any()
    cut = amx.attention(query, query[:, :23], value[:, :23], None, mask[:, :23])
    np.testing.assert_array_equal(found[1], cut[1])


@needs_amx
def test_attention_of_a_row_is_the_same_in_any_company():
    query, mask = heads(37), jnp.zeros((2, 37))
    together = amx.attention(query, query, query, None, mask)
    alone = amx.attention(query[1:], query[1:], query[1:], None, mask[1:])
    np.testing.assert_array_equal(alone[0], together[1])


def uses_amx(function, *arguments):
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
        with amx.enabled():
            return module.apply(params, x)

    return apply


@needs_amx
def test_used_where_enabled_for_bfloat16_and_whole_blocks_alone():
    x = numbers(2, 5, 32, dtype=jnp.float32)
    for module, wanted in (
        (block(), True),
        (block(dtype=jnp.float32), False),
        (block(d_ff=100), False),
    ):
        params = module.init(jax.random.key(0), x)
        assert uses_amx(enabled(module), params, x) == wanted
        assert not uses_amx(module.apply, params, x)


@needs_amx
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
    monkeypatch.setattr(amx, "is_usable", lambda: False)
    assert not uses_amx(enabled(module), params, x)
    np.testing.assert_array_equal(
        exact(enabled(module)(params, x)), exact(module.apply(params, x))
    )


@needs_amx
def test_other_sizes_are_refused_not_read_past_their_end():
    x, kernel = numbers(5, 40), numbers(40, 32)
    with pytest.raises(Exception, match="multiples of 32"):
        amx.product(x, kernel, jnp.float32).block_until_ready()
    assert not amx.can_multiply(x, kernel, jnp.float32)
