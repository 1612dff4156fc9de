"""Normalisation layers."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class RMSNorm(nn.Module):
    """Root-mean-square norm of T5: x / sqrt(mean(x^2) + epsilon) * scale.

    No mean is subtracted and no bias added (Zhang and Sennrich 2019).
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "..."]:
        """Normalises the last axis; statistics in float32, result in `dtype`."""
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
            (x.shape[-1],),
            jnp.dtype(self.param_dtype),
        )
        # float32: the mean of 1,024 squares in bfloat16 is right to two digits only.
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(mean_square + self.epsilon)
        return (x * jnp.asarray(scale)).astype(self.dtype)
