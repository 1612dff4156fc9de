"""Matrix products: the one place that decides the precision of every contraction."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = Callable[..., Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(
    spec: str, a: jax.Array, b: jax.Array, dtype: DTypeLike, out_dtype: DTypeLike
) -> jax.Array:
    """Contracts two arrays in `dtype`, accumulates in float32, returns `out_dtype`.

    The derivative does the same: both of its products take `dtype` operands, and the
    gradient of a float32 parameter is never rounded to bfloat16. (JAX's own rule
    would multiply the float32 cotangent by a bfloat16 operand, which XLA:CPU upcasts
    to a float32 product, two to three times slower.)

    Args:
      spec: Such as "bld,df->blf"; every index occurs in two of the three terms.
      a: First operand, cast to `dtype`.
      b: Second operand, cast to `dtype`.
      dtype: Type of the operands of the product.
      out_dtype: Type of the result.

    Returns:
      The contraction, in `out_dtype`.
    """
    return _contract(spec, a.astype(dtype), b.astype(dtype), out_dtype)


def _einsum_fwd(spec, a, b, dtype, out_dtype):
    # The operands as they came: a parameter is kept by reference, not as a cast copy.
    return _contract(spec, a.astype(dtype), b.astype(dtype), out_dtype), (a, b)


def _einsum_bwd(spec, dtype, out_dtype, residuals, grad):
    del out_dtype
    a, b = residuals
    operands, out = spec.split("->")
    first, second = operands.split(",")
    grad = grad.astype(dtype)
    grad_a = _contract(f"{out},{second}->{first}", grad, b.astype(dtype), a.dtype)
    grad_b = _contract(f"{first},{out}->{second}", a.astype(dtype), grad, b.dtype)
    return grad_a, grad_b


einsum.defvjp(_einsum_fwd, _einsum_bwd)


def _contract(spec, a, b, out_dtype):
    if a.dtype == jnp.float32:
        return jnp.einsum(spec, a, b).astype(out_dtype)

    def wide(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32).astype(
            out_dtype
        )

    def native(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=out_dtype)

    # XLA:CPU runs a bfloat16 product at full speed only with a float32 result.
    # Accelerators accumulate in float32 anyhow, and a bfloat16 result halves what
    # tensor parallelism sends.
    return jax.lax.platform_dependent(a, b, cpu=wide, default=native)


class Dense(nn.Module):
    """Projection without bias of the last axis.

    Attributes:
      features: Size of the new last axis.
      kernel_axes: Logical names of the kernel's two axes.
      kernel_init: Initialiser of the kernel [inputs, features].
      dtype: Type of the product and its result.
      param_dtype: Type of the kernel.
    """

    features: int
    kernel_axes: tuple[str, str]
    kernel_init: Initializer
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length inputs"], out_dtype: DTypeLike | None = None
    ) -> Float[Array, "batch length features"]:
        """Projects `x`; the result has `out_dtype`, or `dtype` if that is None."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
            (x.shape[-1], self.features),
            jnp.dtype(self.param_dtype),
        )
        out_dtype = self.dtype if out_dtype is None else out_dtype
        return einsum(
            "bld,df->blf", x, kernel, jnp.dtype(self.dtype), jnp.dtype(out_dtype)
        )
