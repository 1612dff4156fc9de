"""int8 kernels: products by hand, and where everything is zero."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.layers import dense, quantized

KERNEL = np.array([[127.0, 0.5, 0.0], [-64.0, -1.27, 0.0]], np.float32)


def test_columns_have_their_own_scale():
    integers, scale = quantized.quantize(KERNEL)
    assert integers.dtype == jnp.int8
    np.testing.assert_array_equal(integers, [[127, 50, 0], [-64, -127, 0]])
    np.testing.assert_allclose(scale, [1.0, 0.01, 1.0], rtol=1e-6)


def test_rows_have_their_own_scale_and_sums_are_exact():
    # 127 and 1.27 are the largest of their rows: scales 1 and 0.01. -2.6 is read as -3.
    x = jnp.array([[[127.0, -2.6], [0.3, 1.27], [0.0, 0.0]]])
    out = quantized.product(x, *quantized.quantize(KERNEL), jnp.float32)
    by_hand = [
        [127 * 127 + 3 * 64, (127 * 50 + 3 * 127) * 0.01, 0],
        [(30 * 127 - 127 * 64) * 0.01, (30 * 50 - 127 * 127) * 0.01 * 0.01, 0],
        [0, 0, 0],
    ]
    np.testing.assert_allclose(out[0], by_hand, rtol=1e-5)


def test_projection_takes_an_int8_kernel_where_there_is_one():
    layer = dense.Dense(3, (None, "embed"), nn.initializers.zeros_init(), use_bias=True)
    x = jnp.array([[[127.0, -2.0]]])
    kernel, scale = quantized.quantize(KERNEL)
    bias = jnp.array([1.0, 2.0, 3.0])
    params = {"kernel": kernel, "kernel_scale": scale, "bias": bias}
    out = layer.apply({"params": params}, x)
    by_hand = [127 * 127 + 2 * 64 + 1, (127 * 50 + 2 * 127) * 0.01 + 2, 3]
    np.testing.assert_allclose(out[0, 0], by_hand, rtol=1e-5)


def test_products_take_integers():
    kernel, scale = quantized.quantize(KERNEL)
    x = jnp.ones((2, 5, 2), jnp.bfloat16)
    program = jax.make_jaxpr(
        lambda x: quantized.product(x, kernel, scale, jnp.float32)
    )(x)
    assert "preferred_element_type=int32" in str(program)
    assert "i8[10,2]" in str(program)


def test_nothing_is_derived_through_rounding():
    kernel, scale = quantized.quantize(KERNEL)
    with pytest.raises(TypeError, match="int8 weights are for inference"):
        jax.grad(lambda x: quantized.product(x, kernel, scale, jnp.float32).sum())(
            jnp.ones((1, 1, 2))
        )
