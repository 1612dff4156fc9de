"""The configuration that identifies a run, as a tree of names and plain values."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from prottrans_jax import differences
from prottrans_jax.checkpoints import earlier_identity
from prottrans_jax.layers import compute

# Linen adds these to a module's fields.
_LINEN_FIELDS = frozenset({"parent", "name"})


def identity(**parts: Any) -> dict[str, Any]:
    """A JSON-able tree of configuration objects.

    A dataclass becomes a mapping with its class name as "type", a dtype its name, a
    tuple a list. Numbers, text, True, False and None stay as they are. Fields of type
    `ComputeConfig` are left out.

    >>> identity(seed=3, schedule=schedules.Constant(0.1))
    {'seed': 3, 'schedule': {'type': 'Constant', 'learning_rate': 0.1}}

    Raises:
      ValueError: Another value, such as a function, is in a part; names its place.
    """
    return {name: _tree(name, value) for name, value in parts.items()}


def of_checkpoint(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The identity in the metadata of a checkpoint, of earlier versions too."""
    saved = metadata.get("identity", {})
    if earlier_identity.is_flat(saved):
        return earlier_identity.tree(saved)
    return saved


def _tree(place: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = {differences.TYPE: type(value).__name__}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            # A run may resume with other settings of how its model is computed.
            if field.name in _LINEN_FIELDS or isinstance(
                content, compute.ComputeConfig
            ):
                continue
            # Earlier versions had no such field and behaved as the default does.
            if field.metadata.get("omit_default") and content == field.default:
                continue
            tree[field.name] = _tree(f"{place}.{field.name}", content)
        return tree
    if isinstance(value, Mapping):
        return {str(k): _tree(f"{place}.{k}", item) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(f"{place}.{index}", item) for index, item in enumerate(value)]
    if _is_dtype(value):
        return np.dtype(value).name
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{place}={value!r}: a run cannot be recognised by this value when it resumes. "
        "Give a number, text, a list or a frozen dataclass; for a function a dataclass "
        "with __call__, such as optimizers.schedules.InverseSqrt."
    )


def _is_dtype(value: Any) -> bool:
    # jnp.float32 is neither a dtype nor a class.
    return isinstance(value, np.dtype | type(jnp.float32)) or (
        isinstance(value, type) and issubclass(value, np.generic)
    )
