"""T5's bucketed relative position bias."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Int
import numpy as np

from prottrans_jax.kernels import distance_bias

Bias = distance_bias.DistanceBias


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
    def __call__(self, q_length: int, kv_length: int) -> distance_bias.DistanceBias:
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
        return distance_bias.DistanceBias(values, q_length)

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
