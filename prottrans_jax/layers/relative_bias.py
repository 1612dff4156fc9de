"""T5's bucketed relative position bias."""

import math

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np


def bucket(
    distance: Int[np.ndarray, "*shape"],
    *,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> Int[np.ndarray, "*shape"]:
    """Bucket of a signed distance, key position minus query position.

    Short distances have a bucket each; longer ones share logarithmically wider
    buckets, and all from `max_distance` on share the last (Raffel et al. 2020,
    section 2.1). If `bidirectional`, the upper half of the buckets is for keys after
    the query; otherwise all those keys share bucket 0.

    Distances are constants at trace time, so this uses numpy: the float32 logarithm at
    bucket boundaries is then the same on every device.
    """
    backward: np.ndarray = -np.asarray(distance, np.int32)
    result = np.zeros_like(backward)
    if bidirectional:
        num_buckets //= 2
        result += (backward < 0) * num_buckets
        backward = np.abs(backward)
    else:
        backward = np.maximum(backward, 0)
    num_exact = num_buckets // 2
    with np.errstate(divide="ignore"):
        log_ratio = np.log(backward.astype(np.float32) / np.float32(num_exact))
    log_ratio = np.where(backward < num_exact, np.float32(0), log_ratio)
    coarse: np.ndarray = log_ratio / np.float32(math.log(max_distance / num_exact))
    coarse = num_exact + (coarse * np.float32(num_buckets - num_exact)).astype(np.int32)
    coarse = np.minimum(coarse, num_buckets - 1)
    return result + np.where(backward < num_exact, backward, coarse)


@struct.dataclass
class DistanceBias:
    """A bias on attention scores that depends only on the distance of key and query.

    Holds one value per distance, so its size is linear in the length. `block` expands
    it to the matrix of any block of queries and keys.

    Attributes:
      values: Bias of distance d = key - query at index d + q_length - 1, float32.
      q_length: Number of query positions.
    """

    values: Float[Array, "heads distances"]
    q_length: int = struct.field(pytree_node=False)

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


class RelativePositionBias(nn.Module):
    """Relative position bias of T5 (Raffel et al. 2020, section 2.1).

    One table serves every layer. Hugging Face keeps it inside block 0; here, as in T5X,
    it belongs to the stack. The bias depends on distances only, so proteins packed in
    one row need no position ids.
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, q_length: int, kv_length: int) -> DistanceBias:
        """Bias between `q_length` queries and `kv_length` keys that start together."""
        table = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(
                nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
                ("heads", "relpos_buckets"),
            ),
            (self.num_heads, self.num_buckets),
            jnp.dtype(self.param_dtype),
        )
        buckets = self._buckets(q_length, kv_length)
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        # Highest precision: otherwise a TPU would round the table to bfloat16.
        values = jnp.einsum(
            "hb,nb->hn",
            jnp.asarray(table, jnp.float32),
            one_hot,
            precision=jax.lax.Precision.HIGHEST,
        )
        return DistanceBias(values, q_length)

    def _buckets(self, q_length, kv_length):
        """Bucket of every distance, in the order of `DistanceBias.values`."""
        settings = {
            "bidirectional": self.bidirectional,
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
        }
        if isinstance(q_length, int) and isinstance(kv_length, int):
            return bucket(np.arange(1 - q_length, kv_length), **settings)
        # Symbolic lengths of jax.export: look up in a table of the distances up to
        # max_distance. All others share the buckets at its ends.
        limit = self.max_distance
        table = bucket(np.arange(-limit, limit + 1), **settings)
        distances = jnp.arange(q_length + kv_length - 1) - (q_length - 1)
        return jnp.take(jnp.asarray(table), jnp.clip(distances, -limit, limit) + limit)
