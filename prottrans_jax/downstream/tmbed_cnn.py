"""TMbed's head (Bernhofer & Rost 2022): transmembrane segments and signal peptides.

Each of five networks: a linear layer, two depthwise convolutions of it, the three side
by side, a linear layer to five classes. A Gaussian filter of width 7 smooths the
logits. The probabilities of the networks are averaged.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EPSILON = 1e-6  # TMbed's SeqNorm
_FILTER_WIDTH = 7


class TmbedCnn(nn.Module):
    """The networks of TMbed.

    Attributes:
      outputs: Classes: B, H (transmembrane strand, helix), S (signal), i, o.
      d_hidden: Channels of a network.
      widths: Widths of the depthwise convolutions.
      num_networks: Networks whose probabilities are averaged.
    """

    outputs: int = 5
    d_hidden: int = 64
    widths: tuple[int, ...] = (9, 21)
    num_networks: int = 5

    level = "residue"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length outputs"]:
        """Logarithms of the mean probabilities."""
        del deterministic  # For prediction only.
        log_probabilities = [
            jax.nn.log_softmax(
                _Network(
                    self.outputs, self.d_hidden, tuple(self.widths), name=f"network_{i}"
                )(x, mask)
            )
            for i in range(self.num_networks)
        ]
        summed = jax.nn.logsumexp(jnp.stack(log_probabilities), axis=0)
        return summed - jnp.log(self.num_networks)


class _Network(nn.Module):
    """Smoothed logits of one network."""

    outputs: int
    d_hidden: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d_model"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length outputs"]:
        real = mask[..., None]
        x = jnp.where(real, x, 0)
        x = nn.Dense(self.d_hidden, use_bias=False, name="input")(x)
        x = _Norm(name="input_norm")(x, real)
        parts = [x]
        for number, width in enumerate(self.widths):
            kernel = self.param(
                f"depthwise_{number}", nn.initializers.zeros, (width, self.d_hidden)
            )
            normalise = _Norm(name=f"depthwise_norm_{number}")
            parts.append(normalise(_along_length(x, kernel), real))
        logits = nn.Dense(self.outputs, name="output")(jnp.concatenate(parts, axis=-1))
        logits = jnp.where(real, logits, 0)
        taps = self.param("filter", nn.initializers.zeros, (_FILTER_WIDTH,))
        return _along_length(logits, jnp.tile(taps[:, None], self.outputs))


class _Norm(nn.Module):
    """Normalises over all channels of the real residues of a row; then ReLU."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        real: Bool[Array, "batch length 1"],
    ) -> Float[Array, "batch length channels"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        number = jnp.sum(real, axis=(1, 2), keepdims=True) * x.shape[-1]
        number = jnp.maximum(number, 1)

        def mean(values):
            total = jnp.sum(jnp.where(real, values, 0), axis=(1, 2), keepdims=True)
            return total / number

        centred = x - mean(x)
        x = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + _EPSILON)
        return jnp.where(real, nn.relu(x * scale + bias), 0)


def _along_length(
    x: Float[Array, "batch length channels"], kernel: Float[Array, "width channels"]
) -> Float[Array, "batch length channels"]:
    """Depthwise cross-correlation; zeros beyond the ends."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, None, :],
        window_strides=(1,),
        padding="SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1],
    )
