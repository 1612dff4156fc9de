"""Feed-forward blocks."""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.kernels import products
from prottrans_jax.layers import dense


@jax.custom_vjp
def gelu_exact(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution function (Hendrycks and Gimpel 2016).

    Computed in float32, result in the type of `x`. The backward pass needs `x` only;
    JAX's own saves three arrays of that size.
    """
    return _gelu_exact_fwd(x)[0]


def _gelu_exact_fwd(x):
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype), x


def _gelu_exact_bwd(x, grad):
    wide = x.astype(jnp.float32)
    density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * wide * wide)
    grad = grad.astype(jnp.float32) * (_normal_cdf(wide) + wide * density)
    return (grad.astype(x.dtype),)


def _normal_cdf(x):
    # erf: XLA's erfc costs twice as much for accuracy that float32 sums lose later.
    return 0.5 * (1.0 + jax.lax.erf(math.sqrt(0.5) * x))


gelu_exact.defvjp(_gelu_exact_fwd, _gelu_exact_bwd)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    # Tanh approximation, as in T5 1.1 (Hugging Face's "gelu_new").
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    # With the error function, as in BERT (Hugging Face's "gelu").
    "gelu_exact": gelu_exact,
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def _after_name(activation):
    def apply(x):
        return ACTIVATIONS[activation](ad_checkpoint.checkpoint_name(x, "mlp_hidden"))

    return apply


_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class MLP(nn.Module):
    """Feed-forward block; several activations make it gated.

    One activation: wo(act(wi(x))). Two: wo(act_0(wi_0(x)) * act_1(wi_1(x))), Shazeer
    2020. Dropout on the hidden layer uses one mask for all positions of a row, as in
    T5X.
    """

    d_ff: int
    activations: tuple[str, ...]
    dropout_rate: float
    deterministic: bool
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = False
    kernel_init: dense.Initializer = _KERNEL_INIT

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Applies the block to every position.

        Args:
          x: Input.
          segments: 0 at padding, where the result may be anything finite; None: no
            padding.
        """
        d_model = x.shape[-1]
        project = functools.partial(
            dense.Dense,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_bias=self.use_bias,
        )
        hidden = None
        for index, activation in enumerate(self.activations):
            name = "wi" if len(self.activations) == 1 else f"wi_{index}"
            branch = project(self.d_ff, ("embed", "mlp"), name=name)(
                x,
                activation=products.Activation(activation, _after_name(activation)),
                segments=segments,
            )
            hidden = branch if hidden is None else hidden * branch
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
            hidden, deterministic=self.deterministic
        )
        out = project(d_model, ("mlp", "embed"), name="wo")(hidden, segments=segments)
        return ad_checkpoint.checkpoint_name(out, "mlp_out")
