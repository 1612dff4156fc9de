"""Dropout with one mask for all positions of a row, as in T5X."""

from collections.abc import Callable

from flax import linen as nn
import jax


def by_row(rate: float, deterministic: bool) -> Callable[[jax.Array], jax.Array]:
    """Drops features of [batch, length, d_model], the same at all positions of a row.

    Call it inside a compact method of a module. Unless `deterministic`, an rng named
    "dropout" is required.
    """

    def drop(x: jax.Array) -> jax.Array:
        dropout = nn.Dropout(rate, broadcast_dims=(-2,))
        return dropout(x, deterministic=deterministic)

    return drop
