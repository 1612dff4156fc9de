"""Stacks and unstacks the layers of parameters; the only place that does.

`layers_0`, `layers_1` ... below any node <-> `layers` with a leading axis, the form of
a scanned stack. Host arrays stay on the host: they may be views of files that are too
large to copy as a whole, so they are cast and stacked one parameter at a time.
"""

import collections
from collections.abc import Callable, Container, Mapping
import dataclasses
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import casting, memory_map
from prottrans_jax.layers import compute as compute_config

_STACK = "layers"
_LAYER = re.compile(rf"(?:^|(?<=/)){_STACK}_(\d+)(?=/)")


def convert(
    params: types.Params, *, dtype: DTypeLike | None = None, stacked: bool = False
) -> types.Params:
    """Casts host parameters and stacks or unstacks their layers.

    Unchanged parameters stay views; mapped pages are released once copied.

    Args:
      params: Parameters, stacked or not, numpy.
      dtype: Type for floating-point parameters; None: unchanged.
      stacked: Whether to stack layers; else they are unstacked.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    flat = _stack(flat, dtype) if stacked else _unstack(flat)
    return traverse_util.unflatten_dict(
        {name: _cast(name, array, dtype) for name, array in flat.items()}, sep="/"
    )


def stack(params: types.Params) -> types.Params:
    """Parameters for `scan_layers=True`, from either form; also of a device."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(_stack(flat, None), sep="/")


def unstack(params: types.Params) -> types.Params:
    """Parameters for `scan_layers=False`, from either form; also of a device."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(_unstack(flat), sep="/")


def written_out_shapes(
    init_params: Callable[[compute_config.ComputeConfig], types.Params],
    compute: compute_config.ComputeConfig,
) -> types.Params:
    """Shapes and types of a model's parameters, for `scan_layers=False`.

    Traces a scanned stack, that is one layer. Tracing 24 layers of ProtT5 would take a
    second.

    Args:
      init_params: Creates the parameters of the model, computed in a given way.
      compute: How it is computed, whatever its `scan_layers`.
    """
    scanned = dataclasses.replace(compute, scan_layers=True)
    return jax.eval_shape(lambda: unstack(init_params(scanned)))


def is_stacked(name: str) -> bool:
    """Whether a path such as "encoder/layers/mlp/wi/kernel" is that of a stack."""
    return _STACK in name.split("/")


def stack_name(name: str) -> str:
    """Path of the stack that a layer's parameter belongs to; other paths unchanged."""
    return _LAYER.sub(_STACK, name, count=1)


def layer_name(name: str, layer: int) -> str:
    """Path of one layer's parameter from that of the stack."""
    parts = name.split("/")
    parts[parts.index(_STACK)] = f"{_STACK}_{layer}"
    return "/".join(parts)


def layer_names(name: str, known: Container[str]) -> list[str]:
    """Paths of a stack's layers in order, as far as they are in `known`."""
    names: list[str] = []
    while (following := layer_name(name, len(names))) in known:
        names.append(following)
    return names


def _cast(name: str, array: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    cast = casting.cast(name, array, dtype)
    if cast is not array:
        memory_map.release(array)
    return cast


def _stack(flat: Mapping[str, Any], dtype: DTypeLike | None) -> dict[str, Any]:
    stacked: dict[str, Any] = {}
    layers = collections.defaultdict[str, dict[int, Any]](dict)
    for name, array in flat.items():
        match = _LAYER.search(name)
        if match is None:
            stacked[name] = array
        else:
            layers[stack_name(name)][int(match[1])] = array
    for name, by_number in layers.items():
        arrays = [by_number[number] for number in range(len(by_number))]
        on_host = all(isinstance(array, np.ndarray) for array in arrays)
        stacked[name] = (
            _stack_on_host(name, arrays, dtype) if on_host else jnp.stack(arrays)
        )
    return stacked


def _stack_on_host(
    name: str, arrays: list[np.ndarray], dtype: DTypeLike | None
) -> np.ndarray:
    first = arrays[0]
    stored = casting.stored_dtype(first, dtype)
    result = np.empty((len(arrays), *first.shape), stored)
    for layer, array in enumerate(arrays):
        result[layer] = casting.cast(name, array, dtype)
        memory_map.release(array)
    return result


def _unstack(flat: Mapping[str, Any]) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for name, array in flat.items():
        if not is_stacked(name):
            layers[name] = array
            continue
        for layer in range(array.shape[0]):
            layers[layer_name(name, layer)] = array[layer]
    return layers
