"""Layers written out or stacked, on the host, one parameter at a time.

`layers_0`, `layers_1` ... below any node <-> `layers` with a leading axis. The models
do the same to arrays on devices; here parameters may be views of files larger than
memory should hold twice.
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
    """Parameters in another type, their layers stacked or written out.

    What need not change stays a view; mapped pages are given back once copied.

    Args:
      params: Parameters in either form, numpy.
      dtype: Of floating-point parameters; None keeps theirs.
      stack: Whether layers are stacked; else they are written out.
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
        found = _LAYER.search(name)
        if found is None:
            stacked[name] = array
            continue
        layers[name.replace(found[0], "layers", 1)][int(found[1])] = array
    for name, arrays in layers.items():
        first = arrays[0]
        stored = casting.stored_dtype(first, dtype)
        together = np.empty((len(arrays), *first.shape), stored)
        for layer, array in arrays.items():
            together[layer] = casting.cast(name, array, dtype)
            memory_map.release(array)
        stacked[name] = together
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
