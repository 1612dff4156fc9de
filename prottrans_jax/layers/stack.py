"""Stacks of layers: the only place that scans over layers or rematerialises."""

from typing import Any

from flax import linen as nn
import jax

# What a policy keeps of each layer for the backward pass, by `checkpoint_name`, besides
# the layer's input. None of them keeps the [batch, heads, length, length] scores.
_QKV = ("query", "key", "value")
_SAVED_NAMES = {
    # Results narrow as d_model or as the heads: only the scores, the wide hidden layer
    # of the MLP and elementwise work are done again.
    "save_attention": (*_QKV, "attention_context", "attention_out"),
    # Only results of width d_model: little more memory than "full".
    "save_outputs": ("attention_out", "mlp_out"),
    # Every projection, in its compute type. (T5X's "minimal" keeps the same products,
    # but before they are rounded, in float32.)
    "minimal": (*_QKV, "attention_context", "attention_out", "mlp_hidden", "mlp_out"),
}
REMAT_POLICIES = ("none", "full", *sorted(_SAVED_NAMES))


def apply_layers(
    layer: type[nn.Module],
    x: jax.Array,
    shared: Any,
    *,
    num_layers: int,
    scan_layers: bool,
    remat_policy: str,
    **fields: Any,
) -> jax.Array:
    """Applies `num_layers` layers in a row, inside a compact method.

    Args:
      layer: Module class with `__call__(x, shared) -> (x, None)`.
      x: What goes from layer to layer.
      shared: Tree of arrays that every layer sees (masks, relative bias).
      num_layers: How many layers; 0 returns `x`.
      scan_layers: One compiled layer run in a loop, parameters under `layers` with a
        leading axis named "layers"; else `layers_0`, `layers_1` ... written out.
      remat_policy: One of `REMAT_POLICIES`.
      **fields: Fields of each `layer`.

    Returns:
      The last layer's `x`.
    """
    if remat_policy not in REMAT_POLICIES:
        raise ValueError(
            f"remat_policy={remat_policy!r} is not known. Choose one of "
            f"{', '.join(REMAT_POLICIES)}."
        )
    if num_layers == 0:
        return x
    if remat_policy != "none":
        policies = jax.checkpoint_policies
        if remat_policy == "full":
            policy = policies.nothing_saveable
        else:
            policy = policies.save_only_these_names(*_SAVED_NAMES[remat_policy])
        # In a scan the loop itself keeps XLA from merging the two computations.
        layer = nn.remat(layer, policy=policy, prevent_cse=not scan_layers)
    if not scan_layers:
        for index in range(num_layers):
            x, _ = layer(**fields, name=f"layers_{index}")(x, shared)
        return x
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = scanned(**fields, name="layers")(x, shared)
    return x
