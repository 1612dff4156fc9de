"""Normalisation layers."""

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from prottrans_jax.kernels import normalising


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
        return normalising.norm(
            x, jnp.asarray(scale), epsilon=self.epsilon, dtype=self.dtype
        )


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016): (x - mean) / sqrt(var + epsilon) * scale + bias."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch d_model"],
        # Not "*#batch": jaxtyping cannot broadcast the symbolic sizes of `jax.export`.
        addend: Float[Array, "... d_model"] | None = None,
    ) -> Float[Array, "..."]:
        """Normalises the last axis of `x`, or of `x + addend`, of the shape of `x`.

        Statistics are float32; the sum may be computed in float32 too. The result has
        type `dtype`.
        """

        def vector(name, initializer):
            return jnp.asarray(
                self.param(
                    name,
                    nn.with_logical_partitioning(initializer, ("embed",)),
                    (x.shape[-1],),
                    jnp.dtype(self.param_dtype),
                )
            )

        scale = vector("scale", nn.initializers.ones_init())
        bias = vector("bias", nn.initializers.zeros_init())
        return normalising.norm(
            x, scale, bias, addend, epsilon=self.epsilon, dtype=self.dtype
        )
