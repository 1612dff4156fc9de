"""int8 kernels: products by hand, and rows of one value."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.kernels import quantized
from prottrans_jax.layers import dense

KERNEL = np.array([[127.0, 0.5, 0.0], [-64.0, -1.27, 0.0], [10.0, 0.3, 0.0]], "f")


def test_columns_have_their_own_scale_and_sum():
    integers, scale, column_sum = quantized.quantize(KERNEL)
    assert integers.dtype == jnp.int8
    np.testing.assert_array_equal(integers, [[127, 50, 0], [-64, -127, 0], [10, 30, 0]])
    np.testing.assert_allclose(scale, [1.0, 0.01, 1.0], rtol=1e-6)
    np.testing.assert_allclose(column_sum, [73, -0.47, 0], rtol=1e-6)


def test_columns_keep_their_sums():
    """Rounding to nearest alone errs by the square root of the size, about 6 steps."""
    kernel = np.random.default_rng(0).standard_normal((1500, 7)).astype("f")
    integers, scale, column_sum = quantized.quantize(kernel)
    off = np.asarray(integers * scale - kernel, np.float64) / np.asarray(scale)
    assert np.abs(off.sum(0)).max() < 3 and np.abs(off).max() < 0.53
    np.testing.assert_allclose(column_sum, kernel.sum(0), atol=3 * scale.max())


def test_a_column_of_equal_numbers_is_rounded_to_the_nearest():
    kernel = np.full((30, 1), 0.3, "f")
    kernel[:10] = 127
    np.testing.assert_array_equal(quantized.quantize(kernel).integers[10:], 0)


def test_rows_are_rounded_between_their_minimum_and_maximum():
    # Steps of 1, 1 and 0.01: 0.3 is read as 0, 100.4 as 100, 0.014 as 0.01.
    x = [[127.0, -127.0, 0.3], [0.0, 254.0, 100.4], [-1.27, 0.014, 1.27]]
    read = np.array([[127, -127, 0], [0, 254, 100], [-1.27, 0.01, 1.27]])
    out = quantized.product(jnp.array([x]), quantized.quantize(KERNEL), jnp.float32)
    np.testing.assert_allclose(out[0], read @ KERNEL, rtol=1e-5)


def test_rows_of_one_value_are_exact():
    x = jnp.array([[[0.0] * 3, [5.0] * 3]])
    out = quantized.product(x, quantized.quantize(KERNEL), jnp.float32)
    np.testing.assert_allclose(out[0], [[0, 0, 0], [365, -2.35, 0]], rtol=1e-6)


def test_nonnegative_inputs_use_all_integers():
    """As after a ReLU: rounding symmetrically around 0 would double the error."""
    x = np.random.default_rng(0).uniform(0.0, 1.0, (1, 5, 300)).astype("f")
    identity = quantized.quantize(jnp.eye(300))
    actual = quantized.product(jnp.asarray(x), identity, jnp.float32)
    assert np.abs(actual - x).max() <= 0.5 / 254 + 1e-6


def test_projection_uses_an_int8_kernel_if_there_is_one():
    layer = dense.Dense(3, (None, "embed"), nn.initializers.zeros_init(), use_bias=True)
    x = jnp.array([[[127.0, -127.0, 0.3]]])
    kernel, scale, column_sum = quantized.quantize(KERNEL)
    params = {
        "kernel": kernel,
        "kernel_scale": scale,
        "kernel_sum": column_sum,
        "bias": jnp.array([1.0, 2.0, 3.0]),
    }
    out = layer.apply({"params": params}, x)
    by_hand = [127 * 127 + 127 * 64 + 1, 127 * 0.5 + 127 * 1.27 + 2, 3]
    np.testing.assert_allclose(out[0, 0], by_hand, rtol=1e-5)


def test_products_multiply_integers():
    kernel = quantized.quantize(KERNEL)
    x = jnp.ones((2, 5, 3), jnp.bfloat16)
    program = jax.make_jaxpr(lambda x: quantized.product(x, kernel, jnp.float32))(x)
    assert "preferred_element_type=int32" in str(program)
    assert "i8[10,3]" in str(program)


def test_gradient_through_rounding_is_refused():
    kernel = quantized.quantize(KERNEL)
    with pytest.raises(TypeError, match="int8 weights are for inference"):
        jax.grad(lambda x: quantized.product(x, kernel, jnp.float32).sum())(
            jnp.ones((1, 1, 3))
        )
