"""Precision of matrix products, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.kernels import cpu, products

CASES = {
    "bld,df->blf": ((2, 7, 5), (5, 11)),
    "bld,vd->blv": ((2, 7, 5), (11, 5)),
    "bqhd,bkhd->bhqk": ((2, 7, 3, 5), (2, 6, 3, 5)),
    "bhqk,bkhd->bqhd": ((2, 3, 7, 6), (2, 6, 3, 5)),
    "bhqk,bkhd->bhqd": ((1, 3, 7, 6), (1, 6, 3, 5)),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("spec", CASES)
def test_bfloat16_products_round_operands_only(spec, native, monkeypatch):
    """Equal to float64 products of the rounded operands, to float32 rounding."""
    flags = frozenset({"avx512_bf16"} if native else ())
    monkeypatch.setattr(cpu, "flags", lambda: flags)
    shape_a, shape_b = CASES[spec]
    keys = jax.random.split(jax.random.key(0), 3)
    # Float32 operands, as parameters are: their gradients stay float32.
    a = jax.random.normal(keys[0], shape_a)
    b = jax.random.normal(keys[1], shape_b)

    def product(a, b):
        return products.einsum(spec, a, b, jnp.bfloat16, jnp.float32)

    out, vjp = jax.vjp(product, a, b)
    grad = jax.random.normal(keys[2], out.shape)
    grad_a, grad_b = jax.jit(vjp)(grad)

    def rounded(x):
        return np.asarray(x.astype(jnp.bfloat16), np.float64)

    operands, result = spec.split("->")
    first, second = operands.split(",")
    expected = np.einsum(spec, rounded(a), rounded(b))
    expected_a = np.einsum(f"{result},{second}->{first}", rounded(grad), rounded(b))
    expected_b = np.einsum(f"{first},{result}->{second}", rounded(a), rounded(grad))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(grad_a, expected_a, atol=1e-5)
    np.testing.assert_allclose(grad_b, expected_b, atol=1e-5)


def test_float32_products_are_exact_on_accelerators_unless_the_user_says_so():
    """By default they would keep three digits on a GPU, two on a TPU."""

    def program(platform):
        x = jax.ShapeDtypeStruct((1, 5, 5), jnp.float32)
        kernel = jax.ShapeDtypeStruct((5, 5), jnp.float32)

        def product(x, kernel):
            return products.einsum("bld,df->blf", x, kernel, jnp.float32, jnp.float32)

        exported = jax.export.export(jax.jit(product), platforms=[platform])
        return exported(x, kernel).mlir_module()

    for platform in ("cuda", "tpu"):
        assert "HIGHEST" in program(platform)
        with jax.default_matmul_precision("tensorfloat32"):
            assert "HIGHEST" not in program(platform)


def test_gradient_of_a_bias_is_summed_in_float32():
    grad = jnp.full((4, 600, 3), 0.37, jnp.bfloat16)
    x = jnp.zeros_like(grad)
    bias = jnp.zeros(3)
    _, vjp = jax.vjp(products.add_bias, x, bias)
    np.testing.assert_allclose(
        jax.jit(vjp)(grad)[1], 2400 * float(grad[0, 0, 0]), rtol=1e-6
    )
