"""Stacks of layers. The only place that scans over layers or rematerialises."""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from prottrans_jax import types

# Arrays that a policy saves of each layer for the backward pass, by `checkpoint_name`,
# besides the layer's input. No policy saves the [batch, heads, length, length] scores.
_QKV = ("query", "key", "value")
_SAVED_NAMES = {
    # Results as narrow as d_model or the heads. Only the scores, the wide hidden layer
    # of the MLP and elementwise operations are recomputed.
    "save_attention": (*_QKV, "attention_context", "attention_out"),
    # Results of width d_model only: little more memory than "full".
    "save_outputs": ("attention_out", "mlp_out"),
    # Every projection, in its compute type. (T5X's "minimal" saves the same products in
    # float32, before rounding.)
    "minimal": (*_QKV, "attention_context", "attention_out", "mlp_hidden", "mlp_out"),
}
_LAYER = re.compile(r"layers_\d+")
REMAT_POLICIES = ("none", "full", *sorted(_SAVED_NAMES))


def apply_layers(
    layer: type[nn.Module],
    x: jax.Array,
    shared: Any,
    *,
    num_layers: int,
    scan_layers: bool,
    remat_policy: str,
    share_parameters: bool = False,
    **fields: Any,
) -> jax.Array:
    """Applies `num_layers` layers in a row, inside a compact method.

    Args:
      layer: Module class with `__call__(x, shared) -> (x, None)`.
      x: Input of the first layer.
      shared: Tree of arrays that every layer receives (masks, relative bias).
      num_layers: Number of layers; 0 returns `x`.
      scan_layers: True runs one compiled layer in a loop, with parameters under
        `layers` and a leading axis named "layers". False writes the layers out, with
        parameters under `layers_0`, `layers_1` ...
      remat_policy: One of `REMAT_POLICIES`.
      share_parameters: Whether all layers share parameters (ALBERT), under `layer`.
      **fields: Fields of each `layer`.

    Returns:
      The last layer's `x`.
    """
    x, _ = apply_layers_with_memories(
        layer,
        x,
        shared,
        None,
        num_layers=num_layers,
        scan_layers=scan_layers,
        remat_policy=remat_policy,
        share_parameters=share_parameters,
        **fields,
    )
    return x


def apply_layers_with_memories(
    layer: type[nn.Module],
    x: jax.Array,
    shared: Any,
    memories: PyTree,
    *,
    num_layers: int,
    scan_layers: bool,
    remat_policy: str,
    share_parameters: bool = False,
    **fields: Any,
) -> tuple[jax.Array, PyTree]:
    """As `apply_layers`, for layers that each have a memory as second input and output.

    Args:
      layer: Module class with `__call__(x, shared, memory) -> (x, new memory)`, or
        `__call__(x, shared) -> (x, None)` if `memories` is None.
      x: Input of the first layer.
      shared: Tree of arrays that every layer receives.
      memories: Tree of arrays with a leading axis of `num_layers`, or None.
      num_layers: Number of layers; 0 returns `x` and None.
      scan_layers: See `apply_layers`.
      remat_policy: One of `REMAT_POLICIES`.
      share_parameters: See `apply_layers`.
      **fields: Fields of each `layer`.

    Returns:
      The last layer's `x`, and the new memories of all layers, stacked.
    """
    if remat_policy not in REMAT_POLICIES:
        raise ValueError(
            f"remat_policy={remat_policy!r} is not known. Choose one of "
            f"{', '.join(REMAT_POLICIES)}."
        )
    if num_layers == 0:
        return x, None
    if remat_policy != "none":
        policies = jax.checkpoint_policies
        if remat_policy == "full":
            policy = policies.nothing_saveable
        else:
            policy = policies.save_only_these_names(*_SAVED_NAMES[remat_policy])
        # In a scan the loop itself keeps XLA from merging the two computations.
        layer = nn.remat(layer, policy=policy, prevent_cse=not scan_layers)
    memory_inputs = () if memories is None else (memories,)
    if not scan_layers:
        outputs = []
        one = layer(**fields, name="layer") if share_parameters else None
        for index in range(num_layers):
            memory = jax.tree.map(lambda leaf, i=index: leaf[i], memory_inputs)
            module = one or layer(**fields, name=f"layers_{index}")
            x, output = module(x, shared, *memory)
            outputs.append(output)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    axes: dict[Any, Any] = {"intermediates": 0}
    if not share_parameters:
        axes["params"] = 0
    scanned = nn.scan(
        layer,
        variable_axes=axes,
        variable_broadcast="params" if share_parameters else False,
        split_rngs={"params": not share_parameters, "dropout": True},
        in_axes=(nn.broadcast, *(0 for _ in memory_inputs)),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    name = "layer" if share_parameters else "layers"
    return scanned(**fields, name=name)(x, shared, *memory_inputs)


def stack_layers(params: types.Params) -> types.Params:
    """Parameters for `scan_layers=True` from those of written-out layers.

    Siblings `layers_0`, `layers_1` ... anywhere in the tree become one `layers`.
    """
    stacked = {
        name: stack_layers(x) if isinstance(x, Mapping) else x
        for name, x in params.items()
        if not _LAYER.fullmatch(name)
    }
    names = sorted(filter(_LAYER.fullmatch, params), key=lambda x: int(x[7:]))
    if names:
        layers = [params[name] for name in names]
        stacked["layers"] = jax.tree.map(_stack, *layers)
    return stacked


def unstack_layers(params: types.Params) -> types.Params:
    """Parameters for `scan_layers=False` from those of scanned layers."""
    unstacked = {}
    for name, x in params.items():
        if name == "layers":
            for index in range(jax.tree.leaves(x)[0].shape[0]):
                unstacked[f"layers_{index}"] = jax.tree.map(
                    lambda leaf, i=index: leaf[i], x
                )
        else:
            unstacked[name] = unstack_layers(x) if isinstance(x, Mapping) else x
    return unstacked


def written_out_shapes(
    init_params: Callable[[Any], types.Params], config: Any
) -> types.Params:
    """Shapes and types of a model's parameters, for `scan_layers=False`.

    Traces a scanned stack, that is one layer. Tracing 24 layers of ProtT5 would take a
    second.

    Args:
      init_params: Creates the parameters for a configuration.
      config: The configuration, whatever its `scan_layers`.
    """
    scanned = dataclasses.replace(config, scan_layers=True)
    return jax.eval_shape(lambda: unstack_layers(init_params(scanned)))


def _stack(*arrays):
    # Host arrays are stacked on the host: 11 GB of weights need not go to a device.
    host = all(isinstance(x, np.ndarray) for x in arrays)
    return np.stack(arrays) if host else jnp.stack(arrays)
