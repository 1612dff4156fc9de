"""Parameters of a frozen model, from where they are stored to the device."""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import memory_map
from prottrans_jax.kernels import quantized
from prottrans_jax.proteins import vocabulary as vocabularies


class Holder:
    """A frozen dataclass with `params` that can be pickled, used or not, and copied.

    Pickles hold the parameters as host arrays, bit by bit; they come back on the
    default device. Copies share the arrays, which nobody can change.
    """

    params: types.Params

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: it holds devices.
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]
        state = {field.name: getattr(self, field.name) for field in fields}
        return state | {"params": jax.device_get(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = jax.tree.map(jnp.asarray, state["params"])
        self.__dict__.update(state | {"params": params})

    def __copy__(self) -> Self:
        return dataclasses.replace(self)  # type: ignore[type-var]

    def __deepcopy__(self, memo: Any) -> Self:
        containers = jax.tree.map(lambda array: array, self.params)
        return dataclasses.replace(self, params=containers)  # type: ignore[type-var]


def float_dtype(dtype: DTypeLike) -> np.dtype:
    """Type of whatever is not a product with an int8 kernel."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.int8:
        return jnp.dtype(jnp.bfloat16)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype={dtype.name}: models are computed in float32, bfloat16, float16 or "
            "with int8 weights."
        )
    return dtype


def fingerprint(
    params: types.Params, vocabulary: vocabularies.Vocabulary | None = None
) -> str:
    """SHA-256 of names, types, shapes, evenly spaced values, and pieces if any.

    Not of all bytes: that would read 11 GB before the first protein.
    """
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        at = np.linspace(0, array.size - 1, min(array.size, 64)).astype(np.int64)
        places = zip(*np.unravel_index(at, array.shape), strict=True)
        values = np.array([array[place] for place in places])
        digest.update(values.astype(np.float32).tobytes())
        # 64 values of a mapped file bring in most of its pages.
        memory_map.release(array)
    if vocabulary is not None:
        digest.update("\n".join(vocabulary.pieces).encode())
    return digest.hexdigest()


def subtree(params: Any, wanted: Any) -> Any:
    """The part of `params` that has a counterpart in `wanted`."""
    if not isinstance(wanted, Mapping):
        return params
    missing = sorted(wanted.keys() - params.keys())
    if missing:
        raise ValueError(f"The checkpoint lacks parameters: {', '.join(missing)}.")
    return {name: subtree(params[name], wanted[name]) for name in wanted}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _converted(x, dtype, turned):
    # By all cores, where numpy takes ten times as long for bfloat16. The barrier: never
    # the array that was given, which may lie in a file.
    x = jax.lax.optimization_barrier(x.astype(dtype))
    return x.T if turned else x


def place(params: types.Params, dtype: DTypeLike) -> types.Params:
    """On the device, matrices in the type of the products, the rest in float32.

    Small parameters cost nothing and are used in float32 anyhow: norms, relative
    position biases.
    """

    def put(x, target=None):
        if target is None:
            target = dtype if x.ndim >= 2 and x.size > 1 << 14 else jnp.float32
        # Others' kernels are stored the other way round: as they lie in the file.
        turned = x.ndim == 2 and x.T.flags.c_contiguous
        stored = np.ascontiguousarray(x.T if turned else x)
        placed = _converted(stored, jnp.dtype(target), turned)
        # One array at a time, not the whole file besides the copy.
        placed.block_until_ready()
        memory_map.release(x)
        return placed

    if dtype != jnp.int8:
        return jax.tree.map(put, params)
    dtype = float_dtype(dtype)

    def quantize(kernel):
        return quantized.quantize(put(kernel, jnp.float32))

    return quantized.map_kernels(params, quantize, put)
