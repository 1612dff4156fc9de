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
    grad_b = _contract(f"{out},{first}->{second}", grad, a.astype(dtype), b.dtype)
    return grad_a, grad_b


einsum.defvjp(_einsum_fwd, _einsum_bwd)


def _contract(spec, a, b, out_dtype):
    if a.dtype.itemsize >= 4:
        return jnp.einsum(spec, a, b).astype(out_dtype)

    def native(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=out_dtype)

    # Accelerators accumulate in float32 anyhow, and a bfloat16 result halves what
    # tensor parallelism sends.
    cpu = functools.partial(_contract_on_cpu, spec, out_dtype=out_dtype)
    return jax.lax.platform_dependent(a, b, cpu=cpu, default=native)


def _contract_on_cpu(spec, a, b, *, out_dtype):
    """Brings a bfloat16 product into the forms that XLA:CPU has a kernel for.

    It runs bfloat16 at full speed only with a float32 result, and products with batch
    axes only as [n, m, k] x [n, k or m, m or k]: jax 0.10.2 upcasts others, or fails
    with "Unsupported element type for DotThunk" once it has folded a transpose.
    """
    operands, out = spec.split("->")
    first, second = operands.split(",")
    shared = [x for x in first if x in second]
    batch = [x for x in shared if x in out]
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if not batch:
        return wide(spec, a, b).astype(out_dtype)
    if jax.sharding.get_abstract_mesh().size > 1:
        # Virtual devices, in tests: one axis out of batch and heads could not be
        # sharded by both.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return wide(spec, a, b).astype(out_dtype)
    (contracted,) = (x for x in shared if x not in out)
    if not first.endswith(contracted) and a.size >= b.size:
        # The left operand must end in the contracted axis: turn the smaller one.
        a, b, first, second = b, a, second, first
    (rows,) = (x for x in first if x not in shared)
    (columns,) = (x for x in second if x not in shared)
    sizes = dict(zip(first + second, a.shape + b.shape, strict=True))

    def three_axes(x, names, one, other):
        # [...] -> [batch, one, other]
        x = x.transpose([names.index(name) for name in (*batch, one, other)])
        return x.reshape(-1, sizes[one], sizes[other])

    left = three_axes(a, first, rows, contracted)
    right_order = sorted((contracted, columns), key=second.index)
    right = three_axes(b, second, *right_order)
    # Barriers: or XLA folds the transposes into the product again.
    left, right = jax.lax.optimization_barrier((left, right))
    right_names = "".join("k" if name == contracted else "c" for name in right_order)
    product = wide(f"nrk,n{right_names}->nrc", left, right).astype(out_dtype)
    product = jax.lax.optimization_barrier(product)
    names = [*batch, rows, columns]
    product = product.reshape([sizes[name] for name in names])
    return product.transpose([names.index(name) for name in out])


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
