"""T5X's parameter names of T5, and the model sizes that follow from the shapes.

Unscanned T5X has our names and shapes. Scanned T5X (`scalable_t5`) has one array for
all layers, a separate axis of heads, and a relative bias in every layer:

    T5X: encoder/encoder/                          here: encoder/layers_i/
    mlp/wi/kernel               [D, L, F]          [D, F]
    attention/query/kernel      [D, L, H, K]       [D, H * K]
    attention/out/kernel        [H, L, K, D]       [H * K, D]
    relpos_bias/rel_embedding   [H, L, buckets]    [H, buckets], or once for all layers
"""

from collections.abc import Iterator, Mapping
import re
from typing import Any, NamedTuple

import numpy as np

from prottrans_jax.models import t5

_SIDES = ("encoder", "decoder")
_STACK = re.compile(r"(encoder|decoder)/\1/(.*)")
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.*)")
_BIAS = "relpos_bias/rel_embedding"
_ACTIVATIONS = {1: ("relu",), 2: ("gelu", "linear")}
# T5X's `param_scan_axis`.
_SCAN_AXIS = 1


class Scanned(NamedTuple):
    """Whether a checkpoint has stacked layers, and along which axis."""

    axis: int | None

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Scanned":
        """Detects it from the shapes of arrays (or other objects with a shape)."""
        for name, array in arrays.items():
            match = _STACK.fullmatch(name)
            if match is None or not name.endswith("norm/scale"):
                continue
            width = arrays[f"{match[1]}/{match[1]}_norm/scale"].shape[0]
            # The axis that is not the width; if both are equal, T5X's default.
            axis = 0 if array.shape[0] != width else _SCAN_AXIS
            return cls(axis)
        return cls(None)

    def unstacked(self, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """One of T5X's arrays under our names and in our shapes."""
        match = _STACK.fullmatch(name)
        if match is None:
            return {name: _joined(name, array)}
        layers = {}
        for layer in range(array.shape[self.axis or 0]):
            layer_name = f"{match[1]}/layers_{layer}/{match[2]}"
            layers[layer_name] = _joined(layer_name, array.take(layer, axis=self.axis))
        return layers


def _joined(name: str, array: np.ndarray) -> np.ndarray:
    """A kernel with heads and head_dim merged into one axis."""
    if array.ndim != 3:
        return array
    if name.endswith("out/kernel"):
        return array.reshape(-1, array.shape[-1])
    return array.reshape(array.shape[0], -1)


def scanned(
    flat: Mapping[str, np.ndarray], config: t5.T5Config
) -> Iterator[tuple[str, np.ndarray]]:
    """T5X's names and arrays, one at a time; the inverse of `unstacked`."""
    depth = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    heads = config.num_heads, config.head_dim
    for name, array in flat.items():
        match = _LAYER.fullmatch(name)
        side = name.split("/")[0]
        if match is None and name == f"{side}/{_BIAS}":
            tables = [array] * depth[side]
            yield f"{side}/{side}/{_BIAS}", np.stack(tables, _SCAN_AXIS)
        elif match is None:
            yield name, array
        elif match[2] == "0":
            layers = [
                _apart(name, flat[f"{side}/layers_{layer}/{match[3]}"], heads)
                for layer in range(depth[side])
            ]
            yield f"{side}/{side}/{match[3]}", np.stack(layers, _SCAN_AXIS)


def _apart(name: str, array: np.ndarray, heads: tuple[int, int]) -> np.ndarray:
    if name.endswith("out/kernel"):
        return array.reshape(*heads, array.shape[-1])
    if re.search(r"(query|key|value)/kernel$", name):
        return array.reshape(array.shape[0], *heads)
    return array


def factored_shapes(
    shape: tuple[int, ...], stacked: bool, name: str, min_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shapes of Adafactor's v_row and v_col in T5X; None if it keeps all of v.

    A matrix keeps its smaller dimension in v_row. In a stack v_row keeps d_model, v_col
    the other dimensions, and both keep the layers.
    """
    if stacked and _STACK.fullmatch(name):
        if not name.endswith("kernel"):
            return None
        width = _width_axis(name, len(shape))
        row = tuple(shape[axis] for axis in sorted({width, _SCAN_AXIS}))
        return row, tuple(n for axis, n in enumerate(shape) if axis != width)
    if len(shape) != 2 or min(shape) < min_size:
        return None
    return (min(shape),), (max(shape),)


def _width_axis(name: str, ndim: int) -> int:
    """The axis of d_model in a kernel of a layer or a stack."""
    return ndim - 1 if re.search(r"(out|wo)/kernel$", name) else 0


def renamed_slots(
    name: str, shape: tuple[int, ...], slots: Mapping[str, Any], *, stacked: bool
) -> dict[str, Any]:
    """Adafactor's arrays of one parameter, from T5X's names to ours or back.

    T5X without scanned layers keeps the smaller dimension of a matrix in v_row, the
    first one if both are equal. So do we for a single matrix; in a stack v_row keeps
    d_model. Where the two differ, v_row and v_col change places.

    Args:
      name: Of the parameter, with layers not stacked.
      shape: Of the parameter.
      slots: Its arrays m, v, v_row and v_col, or some of them.
      stacked: Whether our model stacks its layers.
    """
    if "v_row" not in slots or not (stacked and _LAYER.fullmatch(name)):
        return dict(slots)
    smaller = 0 if shape[0] <= shape[1] else 1
    if smaller == _width_axis(name, len(shape)):
        return dict(slots)
    places = {"v_row": "v_col", "v_col": "v_row"}
    return {places.get(slot, slot): array for slot, array in slots.items()}


def share_equal_biases(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replaces equal relative biases of a stack's layers by one for the stack.

    Mesh-TensorFlow stores a shared bias in the first layer only.
    """
    flat = dict(flat)
    for side in _SIDES:
        names = [name for name in flat if _is_layer_bias(name, side)]
        if names and all(np.array_equal(flat[name], flat[names[0]]) for name in names):
            table = flat[names[0]]
            for name in names:
                del flat[name]
            flat[f"{side}/{_BIAS}"] = table
    return flat


def _is_layer_bias(name: str, side: str) -> bool:
    match = _LAYER.fullmatch(name)
    return match is not None and match[1] == side and match[3] == _BIAS


def config_of(flat: Mapping[str, np.ndarray], **overrides: Any) -> t5.T5Config:
    """The configuration that follows from parameters with unstacked layers.

    Raises:
      ValueError: The parameters are not those of a T5; names the first missing one.
    """
    embedding = _need(flat, "token_embedder/embedding")
    depth = {side: _depth(flat, side) for side in _SIDES}
    shared = not any(_is_layer_bias(name, side) for name in flat for side in _SIDES)
    bias = _need(flat, f"encoder/{_BIAS}" if shared else f"encoder/layers_0/{_BIAS}")
    query = _need(flat, "encoder/layers_0/attention/query/kernel")
    num_heads, num_buckets = bias.shape
    if query.shape[1] % num_heads:
        raise ValueError(
            f"queries have width {query.shape[1]}, not a multiple of {num_heads} heads."
        )
    gates = [
        n for n in ("wi", "wi_0", "wi_1") if f"encoder/layers_0/mlp/{n}/kernel" in flat
    ]
    if not gates:
        raise ValueError("encoder/layers_0/mlp has neither wi nor wi_0: not a T5.")
    return t5.T5Config(
        **{
            "vocab_size": embedding.shape[0],
            "num_layers": depth["encoder"],
            "num_decoder_layers": depth["decoder"],
            "num_heads": num_heads,
            "head_dim": query.shape[1] // num_heads,
            "d_model": embedding.shape[1],
            "d_ff": flat[f"encoder/layers_0/mlp/{gates[0]}/kernel"].shape[1],
            "mlp_activations": _ACTIVATIONS[len(gates)],
            "relative_num_buckets": num_buckets,
            "share_relative_bias": shared,
            "tie_embeddings": "decoder/logits_dense/kernel" not in flat,
            **overrides,
        }
    )


def _need(flat: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in flat:
        first_names = ", ".join(sorted(flat)[:5])
        raise ValueError(
            f"there is no {name}: not a T5 of T5X's examples/t5. There are "
            f"{len(flat)} arrays ({first_names}, ...)."
        )
    return flat[name]


def _depth(flat: Mapping[str, np.ndarray], side: str) -> int:
    matches = [match for name in flat if (match := _LAYER.fullmatch(name))]
    layers = {int(match[2]) for match in matches if match[1] == side}
    if layers != set(range(len(layers))):
        raise ValueError(f"{side} has layers {sorted(layers)}: some are missing.")
    return len(layers)
