"""Projections."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.kernels import products, quantized

Initializer = Callable[..., Any]


class Dense(nn.Module):
    """Projection of the last axis.

    If the parameters hold an int8 kernel, with "kernel_scale" and "kernel_sum", the
    product is `quantized.product`.

    Attributes:
      features: Size of the new last axis.
      kernel_axes: Logical names of the kernel's two axes.
      kernel_init: Initialiser of the kernel [inputs, features].
      dtype: Type of the product and its result.
      param_dtype: Type of the parameters.
      use_bias: Whether to add a vector, whose logical axis is that of the new axis.
    """

    features: int
    kernel_axes: tuple[str | None, str]
    kernel_init: Initializer
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length inputs"],
        out_dtype: DTypeLike | None = None,
        activation: products.Activation = products.LINEAR,
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length features"]:
        """Projects the last axis of `x`.

        Args:
          x: Cast to `dtype`.
          out_dtype: Type of the result; None: `dtype`.
          activation: Applied to the projection.
          segments: 0 at padding, where the result may be 0; None: no padding.
        """
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
            (x.shape[-1], self.features),
            jnp.dtype(self.param_dtype),
        )
        bias: jax.Array | None = None
        if self.use_bias:
            vector = self.param(
                "bias",
                nn.with_logical_partitioning(
                    nn.initializers.zeros_init(), self.kernel_axes[1:]
                ),
                (self.features,),
                jnp.dtype(self.param_dtype),
            )
            bias = jnp.asarray(vector)
        out_dtype = jnp.dtype(self.dtype if out_dtype is None else out_dtype)
        weights: jax.Array | quantized.Kernel = jnp.asarray(kernel)
        if self.has_variable("params", "kernel_scale"):
            rest = (
                jnp.asarray(self.get_variable("params", name))
                for name in ("kernel_scale", "kernel_sum")
            )
            weights = quantized.Kernel(jnp.asarray(kernel), *rest)
        return products.product(
            x,
            weights,
            bias,
            dtype=jnp.dtype(self.dtype),
            out_dtype=out_dtype,
            activation=activation,
            segments=segments,
        )
