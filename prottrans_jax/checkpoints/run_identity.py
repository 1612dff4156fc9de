"""The configuration that identifies a run, as a tree of names and plain values."""

from collections.abc import Mapping
from typing import Any

from prottrans_jax import setting_trees
from prottrans_jax.checkpoints import earlier_identity
from prottrans_jax.layers import compute

# Linen adds these to a module's fields.
_LINEN_FIELDS = frozenset({"parent", "name"})


def identity(**parts: Any) -> dict[str, Any]:
    """A tree of configuration objects; see `setting_trees.of`.

    Fields of type `ComputeConfig` are left out.

    >>> identity(seed=3, schedule=schedules.Constant(0.1))
    {'seed': 3, 'schedule': {'type': 'Constant', 'learning_rate': 0.1}}

    Raises:
      ValueError: Another value, such as a function, is in a part; names its place.
    """
    return {
        name: setting_trees.of(name, value, omit=_is_not_part)
        for name, value in parts.items()
    }


def of_checkpoint(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The identity in the metadata of a checkpoint, of earlier versions too."""
    saved = metadata.get("identity", {})
    if earlier_identity.is_flat(saved):
        return earlier_identity.tree(saved)
    return saved


def _is_not_part(name: str, content: object) -> bool:
    # A run may resume with other settings of how its model is computed.
    return name in _LINEN_FIELDS or isinstance(content, compute.ComputeConfig)
