"""A bias on attention scores by distance, without the matrix of all pairs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["q_length"]
)
@dataclasses.dataclass(frozen=True)
class DistanceBias:
    """A bias on attention scores that depends only on the distance of key and query.

    Holds one value per distance, so its size is linear in the length. `block` expands
    it to the matrix of any block of queries and keys.

    Attributes:
      values: Bias of distance d = key - query at index d + q_length - 1, float32.
      q_length: Number of query positions.
    """

    values: Float[Array, "heads distances"]
    q_length: int

    def block(
        self,
        q_start: int | Int[Array, ""],
        kv_start: int | Int[Array, ""],
        q_size: int,
        kv_size: int,
    ) -> Float[Array, "heads q_size kv_size"]:
        """Bias of `q_size` queries from `q_start` on `kv_size` keys from `kv_start`."""
        if not (isinstance(q_size, int) and isinstance(kv_size, int)):
            # Symbolic lengths of jax.export, which cannot compare products of them.
            distance = jnp.arange(kv_size) - jnp.arange(q_size)[:, None]
            index = distance + (kv_start - q_start + self.q_length - 1)
            return jnp.take(self.values, index, axis=1)
        heads = self.values.shape[0]
        first = self.q_length - q_size + kv_start - q_start
        width = q_size + kv_size - 1
        window = jax.lax.dynamic_slice_in_dim(self.values, first, width, axis=1)
        # Row i of the result is the window shifted right by i. Repeating the padded
        # window and reshaping the flat array to rows one shorter does that without a
        # gather, whose gradient would be a scatter of q_size * kv_size values.
        window = jnp.pad(window, ((0, 0), (0, 1)))
        rows = jnp.broadcast_to(window[:, None], (heads, q_size, width + 1))
        flat = rows.reshape(heads, q_size * (width + 1))
        flat = jax.lax.slice_in_dim(
            flat, q_size - 1, q_size - 1 + q_size * width, axis=1
        )
        return flat.reshape(heads, q_size, width)[:, :, :kv_size]

    def pad(self, q_padding: int, kv_padding: int) -> "DistanceBias":
        """The same bias for more queries and keys; new distances get 0."""
        values = jnp.pad(self.values, ((0, 0), (q_padding, kv_padding)))
        return DistanceBias(values, self.q_length + q_padding)
