"""Casts, quantizes and places the parameters of a frozen model on the device."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import digests, memory_map
from prottrans_jax.kernels import quantized
from prottrans_jax.proteins import vocabulary as vocabularies


class Holder:
    """Base of frozen dataclasses with `params`, which can be pickled and copied.

    Pickles hold the exact parameters as host arrays; unpickling places them on the
    default device. Copies share the arrays, which are immutable.
    """

    params: types.Params

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties, which refer to devices.
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]
        state = {field.name: getattr(self, field.name) for field in fields}
        return state | {"params": jax.device_get(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = jax.tree.map(jnp.asarray, state["params"])
        self.__dict__.update(state | {"params": params})

    def __copy__(self) -> "Holder":
        return dataclasses.replace(self)  # type: ignore[type-var]

    def __deepcopy__(self, memo: object) -> "Holder":
        containers = jax.tree.map(lambda array: array, self.params)
        return dataclasses.replace(self, params=containers)  # type: ignore[type-var]


def float_dtype(dtype: DTypeLike) -> np.dtype:
    """Type of all operations except products with int8 kernels."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.int8:
        return jnp.dtype(jnp.bfloat16)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype={dtype.name}: models run in float32, bfloat16, float16 or with "
            "int8 weights."
        )
    return dtype


def fingerprint(
    params: types.Params, vocabulary: vocabularies.Vocabulary | None = None
) -> str:
    """SHA-256 of names, types, shapes, evenly spaced values, and pieces if any.

    Hashing all bytes would read 11 GB before the first protein.
    """
    digest = digests.Sha256()
    for path, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        flat_indices = np.linspace(0, array.size - 1, min(array.size, 64))
        flat_indices = flat_indices.astype(np.int64)
        indices = zip(*np.unravel_index(flat_indices, array.shape), strict=True)
        values = np.array([array[index] for index in indices])
        digest.update(values.astype(np.float32).tobytes())
        # Reading 64 values of a mapped file can load most of its pages.
        memory_map.release(array)
    if vocabulary is not None:
        digest.update("\n".join(vocabulary.pieces).encode())
    return digest.hexdigest()


def subtree(params: PyTree, template: PyTree) -> PyTree:
    """The part of `params` with the structure of `template`."""
    if not isinstance(template, Mapping):
        return params
    missing = sorted(template.keys() - params.keys())
    if missing:
        raise ValueError(f"The checkpoint lacks parameters: {', '.join(missing)}.")
    return {name: subtree(params[name], template[name]) for name in template}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _convert(x, dtype, transpose):
    # Uses all cores; numpy takes ten times as long for bfloat16. The barrier forces a
    # copy: the argument may be a view of a file.
    x = jax.lax.optimization_barrier(x.astype(dtype))
    return x.T if transpose else x


def place(params: types.Params, dtype: DTypeLike) -> types.Params:
    """Places parameters on the device: matrices in `dtype`, others in float32.

    Small parameters (norms, relative position biases) stay float32, the type in which
    they are used.
    """

    def put(x, target=None):
        if target is None:
            target = dtype if x.ndim >= 2 and x.size > 1 << 14 else jnp.float32
        # Kernels of other libraries are transposed in the file: read in file order.
        is_transposed = x.ndim == 2 and x.T.flags.c_contiguous
        stored = np.ascontiguousarray(x.T if is_transposed else x)
        placed = _convert(stored, jnp.dtype(target), is_transposed)
        # One array at a time, so that memory does not also hold the whole file.
        placed.block_until_ready()
        memory_map.release(x)
        return placed

    if dtype != jnp.int8:
        return jax.tree.map(put, params)
    dtype = float_dtype(dtype)

    def quantize(kernel):
        return quantized.quantize(put(kernel, jnp.float32))

    return quantized.map_kernels(params, quantize, put)
