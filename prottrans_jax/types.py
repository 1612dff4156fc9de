"""Aliases that several packages share. Axis names are those of the style guide."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

# Nested dictionaries of arrays; boxed with logical axis names straight after `init`.
Params = Mapping[str, Any]
# Features of one batch, all [rows, length], under T5X's names.
Batch = Mapping[str, jax.Array]
# An object that a gin file makes, @module.Class(); never a number, text or a list.
Component = Any
# What one step hands to the next besides the state: `()` for families without memories.
Carry = Any
# (total, weight) per metric: both add up over microbatches, batches and hosts.
Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


def shape_of(entry: Any) -> tuple[int, ...]:
    """The shape itself, or of anything that has one."""
    return tuple(getattr(entry, "shape", entry))
