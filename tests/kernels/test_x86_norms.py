"""Norms of `kernels.x86` against float64, and when they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.x86_cases import BOTH, enabled, exact, needs_x86, numbers, uses_x86
from prottrans_jax.kernels import frozen, x86
from prottrans_jax.layers import norms

pytestmark = pytest.mark.usefixtures("x86_unit")


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
    actual = jax.jit(lambda *xs: x86.norm(0.5, dtype, *xs))(x, scale, bias)
    assert actual.dtype == dtype and actual.shape == x.shape
    wide = exact(x)
    if with_bias:
        wide = wide - wide.mean(-1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.5) * exact(scale)
    expected += exact(plus) if with_bias else 0
    limit = (2.0**-8 if dtype == "bfloat16" else 2e-6) * np.abs(expected).max()
    np.testing.assert_allclose(exact(actual), expected, rtol=0, atol=limit)


@needs_x86
@BOTH
@pytest.mark.parametrize("with_bias", [False, True])
def test_norm_of_a_sum_adds_in_float32(with_bias, kind):
    x, addend = (numbers(2, 5, 96, seed=i, dtype=kind) for i in (0, 1))
    scale, plus = (numbers(96, seed=i, dtype=jnp.float32) for i in (2, 3))
    bias = plus if with_bias else None
    actual = x86.norm(1e-6, jnp.float32, x, scale, bias, addend)
    wide = x.astype(jnp.float32) + addend.astype(jnp.float32)
    expected = x86.norm(1e-6, jnp.float32, wide, scale, bias)
    np.testing.assert_array_equal(actual, expected)


@needs_x86
def test_norm_of_nan_is_nan():
    x = numbers(1, 3, 64).at[0, 1, 40].set(jnp.nan)
    for bias in (None, jnp.zeros(64)):
        actual = np.asarray(x86.norm(1e-6, jnp.float32, x, jnp.ones(64), bias))
        assert np.isnan(actual[0, 1]).all() and np.isfinite(actual[0, [0, 2]]).all()


@needs_x86
@pytest.mark.parametrize(("scale", "bias"), [(32, 64), (64, 32)])
def test_norm_of_wrong_sizes_is_refused(scale, bias):
    vectors = jnp.zeros(scale), jnp.zeros(bias)
    with pytest.raises(Exception, match="Sizes do not match"):
        x86.norm(1e-6, jnp.float32, numbers(1, 3, 64), *vectors).block_until_ready()


@needs_x86
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_norms_are_used_only_where_enabled_and_for_whole_blocks(name):
    module = getattr(norms, name)(epsilon=1e-6)
    for size, expected in ((64, True), (40, False)):
        x = numbers(2, 5, size, dtype=jnp.float32)
        params = module.init(jax.random.key(0), x)
        assert uses_x86(enabled(module), params, x) == expected
        assert not uses_x86(module.apply, params, x)
        both = enabled(module)(params, x), module.apply(params, x)
        np.testing.assert_allclose(*both, rtol=0, atol=2e-6)


@needs_x86
def test_layer_norm_adds_only_an_addend_of_the_type_and_shape_of_x():
    module, x = norms.LayerNorm(epsilon=1e-6), numbers(2, 5, 64, dtype=jnp.float32)
    params = module.init(jax.random.key(0), x)
    for addend, expected in (
        (numbers(2, 5, 64, seed=1, dtype=jnp.float32), True),
        (numbers(2, 5, 64, seed=1), False),
        (numbers(5, 64, seed=1, dtype=jnp.float32), False),
    ):

        def add(params, x, addend=addend):
            with frozen.scope():
                return module.apply(params, x, addend)

        assert uses_x86(add, params, x) == expected
        summed = module.apply(params, x + addend)
        np.testing.assert_allclose(add(params, x), summed, rtol=0, atol=2e-6)
