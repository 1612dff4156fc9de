"""Attention to cached keys and values, for models that generate token by token.

The modules have the parameters of `attention.MultiHeadAttention` and
`relative_attention.RelativeAttention`, by the same names: they read parameters of a
trained model and are never initialised. Training does not use them.

Slot j of a cache belongs to position j of a row. Queries of a call are at consecutive
positions, the same in all rows.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np

from prottrans_jax.kernels import products, softmax_attention
from prottrans_jax.layers import dense, relative_attention


@struct.dataclass
class KeyValues:
    """Keys and values by slot.

    Heads are before slots, so that the products of a step read each head's keys and
    values in the order of memory.
    """

    key: Float[Array, "batch heads slots head_dim"]
    value: Float[Array, "batch heads slots head_dim"]

    def write(self, others: "KeyValues", start: int | Int[Array, ""]) -> "KeyValues":
        """Replaces the slots from `start` on; in place within a jitted loop."""
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis=2),
            self,
            others,
        )


def empty(
    batch: int, num_heads: int, slots: int, head_dim: int, dtype: DTypeLike
) -> KeyValues:
    """A cache whose slots are to be written; zeros."""
    zeros = jnp.zeros((batch, num_heads, slots, head_dim), dtype)
    return KeyValues(zeros, zeros)


def _attend(query, cached: KeyValues, bias):
    """softmax(query key^T + bias) value, for [batch, queries, heads, head_dim]."""
    dtype = query.dtype
    scores = products.einsum("bqhd,bhkd->bhqk", query, cached.key, dtype, jnp.float32)
    weights = jax.nn.softmax(scores + bias, axis=-1)
    return products.einsum("bhqk,bhkd->bqhd", weights, cached.value, dtype, dtype)


class _Projections(nn.Module):
    """Projections that both kinds of attention have."""

    num_heads: int
    head_dim: int
    d_model: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    def setup(self):
        """Declares the projections."""
        inner = self.num_heads * self.head_dim
        self.query, self.key, self.value = (self._dense(inner) for _ in range(3))
        self.out = self._dense(self.d_model)

    def _dense(self, features: int) -> dense.Dense:
        return dense.Dense(
            features,
            (None, "embed"),
            nn.initializers.zeros_init(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def heads(self, x: jax.Array) -> jax.Array:
        """[batch, length, heads * head_dim] -> [batch, length, heads, head_dim]."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    def key_values(self, x: Float[Array, "batch length d_model"]) -> KeyValues:
        """Keys and values of inputs, one slot for each position."""
        return KeyValues(
            *(jnp.swapaxes(self.heads(f(x)), 1, 2) for f in (self.key, self.value))
        )

    def merge(self, x: jax.Array) -> jax.Array:
        """Output projection of the heads' results."""
        return self.out(x.reshape(*x.shape[:2], -1))


class CachedAttention(_Projections):
    """Attention of T5 to cached keys; see `attention.MultiHeadAttention`."""

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        cached: KeyValues,
        bias: Float[Array, "#batch #heads #length slots"],
    ) -> Float[Array, "batch length d_model"]:
        """Queries from `x`; `bias` is `MASKED` at slots that a query must not see."""
        return self.merge(_attend(self.heads(self.query(x)), cached, bias))


class CachedRelativeAttention(_Projections):
    """Attention with relative positions; see `relative_attention`.

    The term of the token types is omitted: it is the same for all keys if all tokens
    have one type, and softmax then ignores it.
    """

    has_biases: bool = True

    def setup(self):
        """Declares the projections, and u and v unless all layers share them."""
        super().setup()
        self.position = self._dense(self.num_heads * self.head_dim)
        if self.has_biases:
            self.biases = relative_attention.global_biases(
                self, self.num_heads, self.head_dim, self.param_dtype
            )

    def position_keys(
        self, encoding: Float[Array, "distances d_model"]
    ) -> Float[Array, "distances heads head_dim"]:
        """Projected encodings of `distances`, the same in every step."""
        return self.heads(self.position(encoding[None].astype(self.dtype)))[0]

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        cached: KeyValues,
        position_keys: Float[Array, "distances heads head_dim"],
        start: int | Int[Array, ""],
        bias: Float[Array, "#batch 1 length slots"],
        biases: relative_attention.GlobalBiases | None,
    ) -> Float[Array, "batch length d_model"]:
        """Queries from `x`.

        Args:
          x: Inputs of the queries.
          cached: Keys and values.
          position_keys: Of `distances(slots)`.
          start: Position of the first query.
          bias: 0, or `MASKED` at slots that a query must not see.
          biases: u and v if all layers share them.
        """
        own: Any = biases if biases is not None else self.biases
        query = self.heads(self.query(x))
        length, slots = x.shape[1], cached.key.shape[2]

        def biased(vector):
            scaled = (query.astype(jnp.float32) + vector) * self.head_dim**-0.5
            return scaled.astype(query.dtype)

        # Row i of `shift` starts at distance index length - i.
        window = jax.lax.dynamic_slice_in_dim(
            position_keys, slots + 1 - start - length, length + slots
        )
        by_distance = products.einsum(
            "bqhd,khd->hbqk", biased(own.position), window, query.dtype, jnp.float32
        )
        by_key = relative_attention.shift(jnp.swapaxes(by_distance, 0, 1), slots)
        return self.merge(_attend(biased(own.content), cached, by_key + bias))


def distances(slots: int) -> Int[np.ndarray, " distances"]:
    """Distances between a query at any position up to `slots` and any slot."""
    return np.arange(slots + 1, -slots, -1)


def hide_padding(
    segments: Int[Array, "batch slots"],
) -> Float[Array, "batch 1 1 slots"]:
    """0 at slots of a segment, `MASKED` at padding (segment 0)."""
    return jnp.where(segments != 0, 0.0, softmax_attention.MASKED)[:, None, None]


def visible(
    slots: int,
    first: Int[Array, " batch"] | int,
    last: Int[Array, " length"],
    reach: Int[Array, " length"] | int = 0,
) -> Float[Array, "batch 1 length slots"]:
    """0 at slots that a query sees, `MASKED` at others.

    Args:
      slots: Number of slots.
      first: First slot of each row that is not padding.
      last: Last slot that each query sees.
      reach: First slot that each query sees, in all rows.
    """
    slot = jnp.arange(slots)
    seen = (slot <= last[:, None]) & (slot >= jnp.asarray(reach)[..., None])
    seen = seen[None] & (slot >= jnp.reshape(first, (-1, 1, 1)))
    return jnp.where(seen, 0.0, softmax_attention.MASKED)[:, None]
