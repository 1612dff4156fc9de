"""Pools vectors per residue to one per protein; ignores padding and special tokens."""

from types import ModuleType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

POOLINGS = ("mean", "max", "cls")
CLS_OF_PIECES = (
    "pool='cls' of a protein cut in pieces is only that of one piece. Use mean or max."
)


def check(name: str | None, *, has_cls: bool) -> str | None:
    """Checks the name of a pooling; returns None for None and "none".

    Raises:
      ValueError: The name is unknown, or "cls" with a model without a [CLS] token.
    """
    if name in (None, "none"):
        return None
    if name not in POOLINGS:
        choices = ", ".join(POOLINGS if has_cls else POOLINGS[:-1])
        raise ValueError(
            f"pool={name!r} is not known. Choose one of {choices}, or none for vectors "
            "per residue."
        )
    if name == "cls" and not has_cls:
        raise ValueError("pool='cls': this model has no [CLS] token. Use mean or max.")
    return name


def pool(
    hidden: Float[Array, "*layers batch length d_model"],
    residues: Bool[Array, "batch length"],
    cls: Bool[Array, "batch length"],
    name: str,
) -> Float[Array, "*layers batch d_model"]:
    """One vector per row, float32.

    Args:
      hidden: Hidden states.
      residues: True at residues, False at padding and special tokens.
      cls: True at the [CLS] token.
      name: "mean" or "max" over the residues, or "cls".
    """
    return _pool(jnp, hidden.astype(jnp.float32), residues, cls, name)


def pool_protein(
    hidden: Float[np.ndarray, "*layers residues d_model"], name: str
) -> Float[np.ndarray, "*layers d_model"]:
    """`pool` of one protein on the host."""
    if name == "cls":
        raise ValueError(CLS_OF_PIECES)
    hidden = np.asarray(hidden, np.float32)
    return hidden.mean(axis=-2) if name == "mean" else hidden.max(axis=-2)


def _pool(xp: ModuleType, hidden, residues, cls, name):
    if name == "max":
        return xp.where(residues[..., None], hidden, -xp.inf).max(axis=-2)
    chosen = (cls if name == "cls" else residues)[..., None]
    total = xp.where(chosen, hidden, 0.0).sum(axis=-2)
    return total / xp.maximum(chosen.sum(axis=-2), 1)
