"""Stacks and unstacks the layers of parameters on the host, one parameter at a time.

`layers_0`, `layers_1` ... below any node <-> `layers` with a leading axis. The models
do the same to arrays on devices; here parameters may be views of files that are too
large to copy as a whole.
"""

import collections
import re
from typing import Any

from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import casting, memory_map

_LAYER = re.compile(r"layers_(\d+)")


def convert(
    params: types.Params, *, dtype: Any = None, stack: bool = False
) -> types.Params:
    """Casts parameters and stacks or unstacks their layers.

    Unchanged parameters stay views; mapped pages are released once copied.

    Args:
      params: Parameters, stacked or not, numpy.
      dtype: Type for floating-point parameters; None: unchanged.
      stack: Whether to stack layers; else they are unstacked.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    flat = _stack(flat, dtype) if stack else _unstack(flat)
    return traverse_util.unflatten_dict(
        {name: _cast(name, array, dtype) for name, array in flat.items()}, sep="/"
    )


def _cast(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    cast = casting.cast(name, array, dtype)
    if cast is not array:
        memory_map.release(array)
    return cast


def _stack(flat: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    stacked: dict[str, np.ndarray] = {}
    layers = collections.defaultdict[str, dict[int, np.ndarray]](dict)
    for name, array in flat.items():
        match = _LAYER.search(name)
        if match is None:
            stacked[name] = array
            continue
        layers[name.replace(match[0], "layers", 1)][int(match[1])] = array
    for name, arrays in layers.items():
        first = arrays[0]
        stored = casting.stored_dtype(first, dtype)
        stack = np.empty((len(arrays), *first.shape), stored)
        for layer, array in arrays.items():
            stack[layer] = casting.cast(name, array, dtype)
            memory_map.release(array)
        stacked[name] = stack
    return stacked


def _unstack(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        parts = name.split("/")
        if "layers" not in parts:
            layers[name] = array
            continue
        at = parts.index("layers")
        for layer in range(array.shape[0]):
            path = [*parts[:at], f"layers_{layer}", *parts[at + 1 :]]
            layers["/".join(path)] = array[layer]
    return layers
