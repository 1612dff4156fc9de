"""Products with int8 kernels, for frozen models.

A kernel is kept as int8 with a float32 scale per column, "kernel_scale" beside "kernel"
among the parameters. Activations are rounded on the way, each token by its own largest
value (the vector-wise quantisation of Dettmers et al. 2022, without its outliers), so
that products take int8 and sum exactly in int32. Nothing is derived through them.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

_LARGEST = 127


@jax.jit
def quantize(
    x: Float[Array, "*batch inputs outputs"],
) -> tuple[Int8[Array, "*batch inputs outputs"], Float[Array, "*batch outputs"]]:
    """Integers and the float32 scale of each column: x is about integers * scale."""
    integers, scale = _round(x, axis=-2)
    return integers, scale.squeeze(-2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def product(
    x: Float[Array, "batch length inputs"],
    kernel: Int8[Array, "inputs outputs"],
    scale: Float[Array, " outputs"],
    out_dtype: DTypeLike,
) -> Float[Array, "batch length outputs"]:
    """x times the kernel that was quantised, in `out_dtype`."""
    integers, row_scale = _round(x, axis=-1)
    batch, length, inputs = x.shape
    sums = jax.lax.dot_general(
        integers.reshape(batch * length, inputs),
        kernel,
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    sums = sums.reshape(batch, length, -1).astype(jnp.float32)
    return (sums * (row_scale * scale)).astype(out_dtype)


@product.defjvp
def _refuse_to_derive(out_dtype, primals, tangents):
    raise TypeError(
        "int8 weights are for inference: rounding has no derivative. Load the model in "
        "float32 or bfloat16."
    )


def _round(x, axis):
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axis, keepdims=True)
    scale = jnp.where(largest == 0.0, 1.0, largest / _LARGEST)
    return jnp.round(wide / scale).astype(jnp.int8), scale


def is_quantized(params: Any) -> bool:
    """Whether any kernel among the parameters is int8."""
    return any(x.dtype == jnp.int8 for x in jax.tree.leaves(params))


def map_kernels(
    params: Mapping[str, Any],
    quantized: Callable[[Any], tuple[Any, Any]],
    others: Callable[[Any], Any],
) -> dict[str, Any]:
    """A tree with int8 kernels.

    Args:
      params: Parameters, nested by name.
      quantized: From a kernel to its integers and scale, as `quantize`.
      others: From any other parameter to what takes its place.
    """
    found = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found[name] = map_kernels(value, quantized, others)
        elif name == "kernel":
            found[name], found["kernel_scale"] = quantized(value)
        else:
            found[name] = others(value)
    return found
