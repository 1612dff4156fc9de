"""Products with int8 kernels, for frozen models.

A kernel is stored as int8 with a float32 scale and a float32 sum per column:
"kernel_scale" and "kernel_sum" beside "kernel" among the parameters. Activations are
rounded to int8 as well, each token between its own minimum and maximum, and products
are summed exactly in int32. (Dettmers et al. 2022 round vectors symmetrically around 0;
after a ReLU or GELU that would leave half of the integers unused.) `x86.product` with a
matrix unit keeps activations in bfloat16. There are no gradients.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, PyTree

# Rounding method of kernels: values nearest a rounding boundary are flipped to preserve
# the column sum. The text is stored in embedding files as part of the identity of a
# model, because another method gives other embeddings: do not reword it.
ROUNDING = "columns keep their sums"
_LARGEST = 127
# Iterations of the correction. After each, the error of a column's sum is about the
# square root of the number of values changed.
_SHIFTS = 3


class Kernel(NamedTuple):
    """A quantised kernel; integers * scale approximates the original.

    Attributes:
      integers: From -127 to 127.
      scale: Scale of each column.
      column_sum: Sum of each column of integers * scale.
    """

    integers: Int8[Array, "*batch inputs outputs"]
    scale: Float[Array, "*batch outputs"]
    column_sum: Float[Array, "*batch outputs"]


@jax.jit
def quantize(x: Float[Array, "*batch inputs outputs"]) -> Kernel:
    """Rounds a kernel to int8 with a scale for each column.

    The sum of each column is preserved: values nearest a rounding boundary are rounded
    to the other side. Otherwise the errors add up when the inputs do not average 0, as
    after a GELU.
    """
    wide = x.astype(jnp.float32)
    scale = _steps(jnp.abs(wide).max(axis=-2, keepdims=True))
    scaled = wide / scale

    def mean_error(integers):
        return (scaled - integers).mean(axis=-2, keepdims=True)

    integers = jnp.round(scaled)
    shift = jnp.zeros_like(scale)
    for _ in range(_SHIFTS):
        shift = shift + mean_error(integers)
        shifted = jnp.clip(jnp.round(scaled + shift), -_LARGEST, _LARGEST)
        # Equal values all change together, which may overshoot.
        is_better = jnp.abs(mean_error(shifted)) < jnp.abs(mean_error(integers))
        integers = jnp.where(is_better, shifted, integers)
    integers = integers.astype(jnp.int8)
    scale = scale.squeeze(-2)
    total = integers.sum(axis=-2, dtype=jnp.int32).astype(jnp.float32)
    return Kernel(integers, scale, total * scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "batch length inputs"], kernel: Kernel, out_dtype: DTypeLike
) -> Float[Array, "batch length outputs"]:
    """Product of `x` and a quantised kernel, in `out_dtype`."""
    wide = x.astype(jnp.float32)
    low, high = wide.min(axis=-1, keepdims=True), wide.max(axis=-1, keepdims=True)
    # integers * step + middle approximates x.
    middle, step = 0.5 * (high + low), _steps(0.5 * (high - low))
    integers = jnp.round((wide - middle) / step).astype(jnp.int8)
    batch, length, inputs = x.shape
    sums = jax.lax.dot_general(
        integers.reshape(batch * length, inputs),
        kernel.integers,
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    sums = sums.reshape(batch, length, -1).astype(jnp.float32)
    products = sums * (step * kernel.scale) + middle * kernel.column_sum
    return products.astype(out_dtype)


@product.defjvp
def _refuse_gradient(out_dtype, primals, tangents):
    raise TypeError(
        "int8 weights are for inference: rounding has no derivative. Load the model in "
        "float32 or bfloat16."
    )


def _steps(largest):
    return jnp.where(largest == 0.0, 1.0, largest / _LARGEST)


def is_quantized(params: PyTree) -> bool:
    """Whether any kernel among the parameters is int8."""
    return any(x.dtype == jnp.int8 for x in jax.tree.leaves(params))


def map_kernels(
    params: Mapping[str, Any],
    quantized: Callable[[Any], Kernel],
    others: Callable[[Any], Any],
) -> dict[str, Any]:
    """Replaces every kernel by an int8 one and maps all other parameters.

    Args:
      params: Parameters, nested by name.
      quantized: Quantises a kernel, as `quantize`.
      others: Maps any other parameter.
    """
    mapped: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            mapped[name] = map_kernels(value, quantized, others)
        elif name == "kernel":
            kernel = quantized(value)
            mapped[name] = kernel.integers
            mapped["kernel_scale"] = kernel.scale
            mapped["kernel_sum"] = kernel.column_sum
        else:
            mapped[name] = others(value)
    return mapped
