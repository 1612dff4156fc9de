"""Products with int8 kernels, for frozen models.

A kernel is kept as int8 with a float32 scale per column and the sum of each column,
"kernel_scale" and "kernel_sum" beside "kernel" among the parameters. Activations are
rounded on the way, each token between its own least and largest value, so that products
take int8 and sum exactly in int32 (Dettmers et al. 2022 round vectors as well, about 0:
behind a ReLU or GELU half of the integers would then stay unused); but not by
`x86.product` with a matrix unit, which keeps them in bfloat16. Nothing is derived
through them.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

# How kernels are rounded: vectors of another way are another model's.
ROUNDING = "columns keep their sums"
_LARGEST = 127
# Each leaves of a column's sum about the root of how many numbers it changed.
_SHIFTS = 3


class Kernel(NamedTuple):
    """A quantised kernel, about integers * scale.

    Attributes:
      integers: From -127 to 127.
      scale: Of each column.
      column_sum: Sums of the columns of integers * scale.
    """

    integers: Int8[Array, "*batch inputs outputs"]
    scale: Float[Array, "*batch outputs"]
    column_sum: Float[Array, "*batch outputs"]


@jax.jit
def quantize(x: Float[Array, "*batch inputs outputs"]) -> Kernel:
    """Integers with a scale for each column.

    Columns keep their sums, or errors would add up where what is multiplied is not
    around 0, as behind a GELU: of the numbers nearest to the middle between two
    integers as many as that takes become the other one.
    """
    wide = x.astype(jnp.float32)
    scale = _steps(jnp.abs(wide).max(axis=-2, keepdims=True))
    wanted = wide / scale

    def missing(integers):
        return (wanted - integers).mean(axis=-2, keepdims=True)

    integers = jnp.round(wanted)
    shift = jnp.zeros_like(scale)
    for _ in range(_SHIFTS):
        shift = shift + missing(integers)
        others = jnp.clip(jnp.round(wanted + shift), -_LARGEST, _LARGEST)
        # Where many are the same number, all of them would change.
        is_better = jnp.abs(missing(others)) < jnp.abs(missing(integers))
        integers = jnp.where(is_better, others, integers)
    integers = integers.astype(jnp.int8)
    scale = scale.squeeze(-2)
    total = integers.sum(axis=-2, dtype=jnp.int32).astype(jnp.float32)
    return Kernel(integers, scale, total * scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "batch length inputs"], kernel: Kernel, out_dtype: DTypeLike
) -> Float[Array, "batch length outputs"]:
    """x times the kernel that was quantised, in `out_dtype`."""
    wide = x.astype(jnp.float32)
    low, high = wide.min(axis=-1, keepdims=True), wide.max(axis=-1, keepdims=True)
    # x is about integers * step + middle.
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
def _refuse_to_derive(out_dtype, primals, tangents):
    raise TypeError(
        "int8 weights are for inference: rounding has no derivative. Load the model in "
        "float32 or bfloat16."
    )


def _steps(largest):
    return jnp.where(largest == 0.0, 1.0, largest / _LARGEST)


def is_quantized(params: Any) -> bool:
    """Whether any kernel among the parameters is int8."""
    return any(x.dtype == jnp.int8 for x in jax.tree.leaves(params))


def map_kernels(
    params: Mapping[str, Any],
    quantized: Callable[[Any], Kernel],
    others: Callable[[Any], Any],
) -> dict[str, Any]:
    """A tree with int8 kernels.

    Args:
      params: Parameters, nested by name.
      quantized: From a kernel, as `quantize`.
      others: From any other parameter to what takes its place.
    """
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found[name] = map_kernels(value, quantized, others)
        elif name == "kernel":
            kernel = quantized(value)
            found[name] = kernel.integers
            found["kernel_scale"] = kernel.scale
            found["kernel_sum"] = kernel.column_sum
        else:
            found[name] = others(value)
    return found
