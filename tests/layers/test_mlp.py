"""Activations of the feed-forward blocks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import mlp


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exact_gelu_and_its_derivative(dtype):
    x = np.asarray(jnp.linspace(-7, 7, 57).astype(dtype), np.float64)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    value, vjp = jax.vjp(mlp.ACTIVATIONS["gelu_exact"], jnp.asarray(x, dtype))
    (slope,) = vjp(jnp.ones_like(value))
    assert value.dtype == slope.dtype == dtype
    rtol = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(
        np.asarray(value, np.float64), x * cdf, rtol=rtol, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(slope, np.float64), cdf + x * density, rtol=rtol, atol=1e-6
    )
