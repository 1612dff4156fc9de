"""Stacks of layers. The only place that scans over layers or rematerialises."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from prottrans_jax.layers import compute as compute_config


def apply_layers(
    layer: type[nn.Module],
    x: jax.Array,
    shared: PyTree,
    *,
    num_layers: int,
    compute: compute_config.ComputeConfig,
    share_parameters: bool = False,
    **fields: Any,
) -> jax.Array:
    """Applies `num_layers` layers in a row, inside a compact method.

    Args:
      layer: Module class with `__call__(x, shared) -> (x, None)`.
      x: Input of the first layer.
      shared: Tree of arrays that every layer receives (masks, relative bias).
      num_layers: Number of layers; 0 returns `x`.
      compute: Its `scan_layers` runs one compiled layer in a loop, with parameters
        under `layers` and a leading axis named "layers"; without it the layers are
        written out, with parameters under `layers_0`, `layers_1` ... Its `remat_policy`
        holds for every layer. Also a field of each `layer`.
      share_parameters: Whether all layers share parameters (ALBERT), under `layer`.
      **fields: Other fields of each `layer`.

    Returns:
      The last layer's `x`.
    """
    x, _ = apply_layers_with_memories(
        layer,
        x,
        shared,
        None,
        num_layers=num_layers,
        compute=compute,
        share_parameters=share_parameters,
        **fields,
    )
    return x


def apply_layers_with_memories(
    layer: type[nn.Module],
    x: jax.Array,
    shared: PyTree,
    memories: PyTree,
    *,
    num_layers: int,
    compute: compute_config.ComputeConfig,
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
      compute: See `apply_layers`.
      share_parameters: See `apply_layers`.
      **fields: Other fields of each `layer`.

    Returns:
      The last layer's `x`, and the new memories of all layers, stacked.
    """
    if num_layers == 0:
        return x, None
    fields["compute"] = compute
    if compute.remat_policy != "none":
        policies = jax.checkpoint_policies
        if compute.remat_policy == "full":
            policy = policies.nothing_saveable
        else:
            policy = policies.save_only_these_names(
                *compute_config.SAVED_NAMES[compute.remat_policy]
            )
        # In a scan the loop itself keeps XLA from merging the two computations.
        layer = nn.remat(layer, policy=policy, prevent_cse=not compute.scan_layers)
    memory_inputs = () if memories is None else (memories,)
    if not compute.scan_layers:
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
