"""What the tests of `kernels.x86` share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.kernels import frozen, x86

needs_x86 = pytest.mark.skipif(
    not x86.is_usable(), reason="no AVX-512 for bfloat16, or not compiled for it"
)

BOTH = pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32])


def numbers(*shape, seed=0, dtype=jnp.bfloat16):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, dtype)


def exact(x):
    return np.asarray(x, np.float64)


def uses_x86(function, *arguments):
    return "prottrans_jax_" in jax.jit(function).lower(*arguments).as_text()


def enabled(module):
    def apply(params, x):
        with frozen.scope():
            return module.apply(params, x)

    return apply
