"""Matrix products: the only place that sets the precision of contractions.

`product` and `einsum` choose between the compiled kernels for x86 CPUs (`x86`), the
form that XLA:CPU runs at full speed, int8 (`quantized`) and XLA's own contraction.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.kernels import cpu, quantized, x86


class Activation(NamedTuple):
    """Activation applied to a projection.

    Attributes:
      name: In `x86.ACTIVATIONS`, for a kernel that fuses product and activation.
      apply: The same function, for products that do not fuse it.
    """

    name: str
    apply: Callable[[jax.Array], jax.Array]


LINEAR = Activation("linear", lambda x: x)


# Rows of a call. On a CPU, products of XLA are fastest at 500 to 1,000 rows; those
# of `x86` are faster with more rows, because a weight matrix is laid out once per call:
# with AVX-512, ProtBert takes 1 to 3 % less time at 4,096 than at 2,048. Accelerators
# need many rows.
_CPU_ROWS, _X86_ROWS = 1024, {"amx": 2048, "avx512": 4096}
_ACCELERATOR_ROWS = 16384


def best_rows(platform: str) -> int:
    """Number of rows with which products of frozen models are fastest."""
    if platform != "cpu":
        return _ACCELERATOR_ROWS
    units = x86.units()
    return _X86_ROWS[units[0]] if units else _CPU_ROWS


def rounds_inputs_to_int8(platform: str) -> bool:
    """Whether `product` rounds the inputs of int8 kernels of frozen models to int8."""
    return platform != "cpu" or not x86.is_usable() or x86.rounds_to_int8()


def product(
    x: Float[Array, "batch length inputs"],
    kernel: Float[Array, "inputs outputs"] | quantized.Kernel,
    bias: Float[Array, " outputs"] | None,
    *,
    dtype: jnp.dtype,
    out_dtype: jnp.dtype,
    activation: Activation = LINEAR,
    segments: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length outputs"]:
    """activation(x kernel + bias).

    Within `frozen.scope`, the compiled kernels of `x86` may compute it on a CPU.

    Args:
      x: Cast to `dtype`.
      kernel: Cast to `dtype`, or int8.
      bias: Added to the product, in float32.
      dtype: Type of the operands.
      out_dtype: Type of the result.
      activation: Applied to the sum.
      segments: 0 at padding, where the result may be 0. None: all rows are needed.
    """

    def in_steps(x, kernel, bias, segments):
        if isinstance(kernel, quantized.Kernel):
            out = quantized.product(x, kernel, out_dtype)
        else:
            out = einsum("bld,df->blf", x, kernel, dtype, out_dtype)
        return activation.apply(out if bias is None else add_bias(out, bias))

    def at_once(x, kernel, bias, segments):
        rows = x.reshape(-1, x.shape[-1]).astype(dtype)
        if isinstance(kernel, quantized.Kernel):
            numbers, scale = kernel.integers, kernel.scale
        else:
            numbers, scale = kernel.astype(dtype), None
        if not x86.can_multiply(rows, numbers, out_dtype):
            return in_steps(x, kernel, bias, segments)
        out = x86.product(
            rows,
            numbers,
            out_dtype,
            scale=scale,
            bias=bias,
            activation=activation.name,
            real=None if segments is None else x86.real_rows(segments),
        )
        return out.reshape(*x.shape[:-1], -1)

    arguments = x, kernel, bias, segments
    if not x86.is_enabled():
        return in_steps(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=at_once, default=in_steps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(
    spec: str, a: jax.Array, b: jax.Array, dtype: DTypeLike, out_dtype: DTypeLike
) -> jax.Array:
    """Contracts two arrays in `dtype`, accumulates in float32, returns `out_dtype`.

    The backward pass does the same: both of its products have `dtype` operands, and the
    gradient of a float32 parameter is never rounded to bfloat16. (JAX's own rule
    multiplies the float32 cotangent by a bfloat16 operand, which XLA:CPU upcasts to a
    float32 product, two to three times slower.)

    Args:
      spec: For example "bld,df->blf"; every index occurs in two of the three terms.
      a: First operand, cast to `dtype`.
      b: Second operand, cast to `dtype`.
      dtype: Type of the operands of the product.
      out_dtype: Type of the result.

    Returns:
      The contraction, in `out_dtype`.
    """
    return _contract(spec, a.astype(dtype), b.astype(dtype), out_dtype)


def _einsum_fwd(spec, a, b, dtype, out_dtype):
    # Residuals are the original operands: a parameter is saved by reference, not cast.
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
    def native(a, b):
        if a.dtype.itemsize >= 4:
            return jnp.einsum(spec, a, b, precision=_wide_precision()).astype(out_dtype)
        return jnp.einsum(spec, a, b, preferred_element_type=out_dtype)

    # Accelerators accumulate in float32 in any case, and a bfloat16 result halves the
    # communication of tensor parallelism.
    on_cpu = functools.partial(_contract_on_cpu, spec, out_dtype=out_dtype)
    return jax.lax.platform_dependent(a, b, cpu=on_cpu, default=native)


def _contract_on_cpu(spec, a, b, *, out_dtype):
    """Rewrites a product in the only form that XLA:CPU runs at full speed.

    The form is [batch, rows, k] x [batch, k, columns], or x [batch, columns, k], with
    at most one batch axis, contiguous rows and float32 results. jax 0.10.2 upcasts
    other products from bfloat16 to float32 (x^T g, the gradient of every weight, is
    then two to four times slower), uses a slower kernel, or fails with "Unsupported
    element type for DotThunk". On a CPU that does not multiply bfloat16 the operands
    are cast to float32 first: XLA's own handling takes 1.5 times as long there.
    """
    if a.dtype.itemsize > 4 or jax.sharding.get_abstract_mesh().size > 1:
        # Virtual devices, in tests: an axis merged from batch and heads could not be
        # sharded over two mesh axes.
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.einsum(spec, a.astype(wide), b.astype(wide)).astype(out_dtype)
    if a.dtype == jnp.bfloat16 and not _cpu_multiplies_bfloat16():
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    operands, out = spec.split("->")
    first, second = operands.split(",")
    batch = [x for x in out if x in first and x in second]
    contracted = [x for x in first if x in second and x not in out]
    rows = [x for x in out if x not in second]
    columns = [x for x in out if x not in first]
    if rows and columns and out.index(columns[0]) < out.index(rows[0]):
        # Swapped operands: the result needs no transpose.
        a, b, first, second, rows, columns = b, a, second, first, columns, rows
    sizes = dict(zip(first + second, a.shape + b.shape, strict=True))

    def merged(names):
        return math.prod(sizes[name] for name in names)

    lead = [merged(batch)] if batch else []

    def arrange(x, names, *groups):
        # [...] -> [batch, group, group] with each group merged into one axis.
        order = [names.index(name) for group in (batch, *groups) for name in group]
        shape = [*lead, *(merged(group) for group in groups)]
        if order == sorted(order):
            return x.reshape(shape)
        x = x.transpose(order)
        # The barrier keeps XLA from folding the transpose into the product. Without a
        # reshape on both sides, the product still uses the old memory layout.
        x = jax.lax.optimization_barrier(x.reshape(1, *x.shape))
        return x.reshape(shape)

    left = arrange(a, first, rows, contracted)
    columns_first = second.index(contracted[0]) > second.index(columns[0])
    right_groups = (columns, contracted) if columns_first else (contracted, columns)
    right = arrange(b, second, *right_groups)
    axis = len(lead)
    batch_axes = tuple(range(axis))
    product = jax.lax.dot_general(
        left,
        right,
        (((axis + 1,), (axis + columns_first,)), (batch_axes, batch_axes)),
        preferred_element_type=jnp.float32,
    ).astype(out_dtype)
    names = [*batch, *rows, *columns]
    if names == list(out):
        return product.reshape([sizes[name] for name in out])
    product = jax.lax.optimization_barrier(product)
    product = product.reshape([sizes[name] for name in names])
    return product.transpose([names.index(name) for name in out])


def _wide_precision() -> jax.lax.Precision | None:
    """Full precision for float32, unless `jax_default_matmul_precision` is set.

    JAX's default keeps three of the seven decimal digits on a GPU and two on a TPU.
    """
    config: Any = jax.config
    set_by_user = config.jax_default_matmul_precision
    return None if set_by_user else jax.lax.Precision.HIGHEST


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has bfloat16 instructions; True where that cannot be read."""
    flags = cpu.flags()
    return flags is None or not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@jax.custom_vjp
def add_bias(
    x: Float[Array, "*batch features"], bias: Float[Array, " features"]
) -> Float[Array, "*batch features"]:
    """Adds a vector to the last axis, in the type of `x`.

    The gradient of `bias` is summed in float32. JAX's own rule sums in bfloat16, which
    over a few thousand positions is wrong in the first digit.
    """
    return _add_bias_fwd(x, bias)[0]


def _add_bias_fwd(x, bias):
    return (x + bias.astype(jnp.float32)).astype(x.dtype), bias


def _add_bias_bwd(bias, grad):
    axes = tuple(range(grad.ndim - 1))
    return grad, jnp.sum(grad, axis=axes, dtype=jnp.float32).astype(bias.dtype)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
