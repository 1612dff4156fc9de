"""Heads: small networks that predict labels from the vectors of a frozen encoder.

  Linear            logistic or linear regression
  Cnn               two convolutions, the paper's head for residues
  BiLstm            a bidirectional LSTM
  Fnn               one hidden layer; with the mean of the residues the paper's head
                    for proteins
  LightAttention    convolution and attention over the residues

A head maps [batch, length, d_model] and a mask of the real residues to [batch, length,
outputs] or, with level "protein", to [batch, outputs]. Padding never changes the
outputs of a real residue or protein: it is masked before each convolution, LSTMs run
backwards from the last residue of each row, and softmax, mean and maximum are masked.
"""

import functools
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Level = Literal["residue", "protein"]
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Convolutions with fewer outputs than this compute all their taps in one product; wider
# ones one tap at a time, for they would need `width` times the memory.
_JOINED_TAPS = 512


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_kernel_init, name=name)


def mean_of_residues(
    x: Float[Array, "batch length d_model"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch d_model"]:
    """Mean over the real residues; 0 for a row without any."""
    number = jnp.sum(mask, axis=1, keepdims=True)
    total = jnp.sum(jnp.where(mask[..., None], x, 0), axis=1)
    return total / jnp.maximum(number, 1)


class Convolution(nn.Module):
    """A convolution along the residues, of odd width, as torch's Conv1d with padding.

    Padding counts as zeros, as positions beyond the ends do.

    Attributes:
      features: Outputs of a position.
      width: Positions that an output depends on.
    """

    features: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length inputs"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length outputs"]:
        """Outputs of each position; those of padding have no meaning."""
        shape = (self.width, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.where(mask[..., None], x, 0)
        if self.width * self.features <= _JOINED_TAPS:
            # [width, inputs, outputs] -> [inputs, width * outputs]
            joined = jnp.swapaxes(kernel, 0, 1).reshape(x.shape[-1], -1)
            products = (x @ joined).reshape(*x.shape[:-1], self.width, self.features)
            taps = [products[..., tap, :] for tap in range(self.width)]
        else:
            taps = [x @ kernel[tap] for tap in range(self.width)]
        middle = self.width // 2
        return bias + sum(
            _shift(product, tap - middle) for tap, product in enumerate(taps)
        )


def _shift(x: Float[Array, "batch length outputs"], by: int) -> jax.Array:
    """Row i of the result is row i + `by` of x; zeros from beyond the ends."""
    length = x.shape[1]
    before, after = min(max(-by, 0), length), min(max(by, 0), length)
    return jnp.pad(x[:, after : length - before], ((0, 0), (before, after), (0, 0)))


class Linear(nn.Module):
    """Logistic regression for classes, linear regression for numbers.

    Attributes:
      outputs: Outputs of a residue or protein.
      level: "residue", or "protein" for the mean of the residues.
      dropout_rate: Of the inputs; 0.2 in the fine-tuning notebooks of ProtTrans.
    """

    outputs: int
    level: Level = "residue"
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch *length outputs"]:
        """Logits or numbers."""
        if self.level == "protein":
            x = mean_of_residues(x, mask)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
        return _dense(self.outputs, "output")(x)


class Cnn(nn.Module):
    """The head of ProtTrans for residues (Elnaggar et al. 2021, section 2.6).

    Convolution to `d_hidden`, ReLU, dropout, convolution to the outputs; both of width
    7. The published heads predict 3 and 8 states and disorder from one hidden layer:
    their outputs are 3 + 8 + 2 in this order (bio_embeddings).

    Attributes:
      outputs: Outputs of a residue.
      d_hidden: Size of the hidden layer.
      width: Width of both convolutions.
      dropout_rate: Of the hidden layer.
    """

    outputs: int
    d_hidden: int = 32
    width: int = 7
    dropout_rate: float = 0.25

    level = "residue"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length outputs"]:
        """Logits or numbers."""
        x = nn.relu(Convolution(self.d_hidden, self.width, name="hidden")(x, mask))
        x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
        return Convolution(self.outputs, self.width, name="output")(x, mask)


class BiLstm(nn.Module):
    """A bidirectional LSTM and a linear layer, the third head that the paper compares.

    The paper does not give the size of the LSTM; ours makes both heads of similar cost.

    Attributes:
      outputs: Outputs of a residue.
      d_hidden: Size of the state in each direction.
      dropout_rate: Of the states, before the linear layer.
    """

    outputs: int
    d_hidden: int = 32
    dropout_rate: float = 0.25

    level = "residue"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length outputs"]:
        """Logits or numbers."""
        x = jnp.where(mask[..., None], x, 0)
        lengths = jnp.sum(mask, axis=1)
        states = nn.Bidirectional(
            nn.RNN(nn.OptimizedLSTMCell(self.d_hidden, name="forward")),
            nn.RNN(nn.OptimizedLSTMCell(self.d_hidden, name="backward")),
        )(x, seq_lengths=lengths)
        states = nn.Dropout(self.dropout_rate)(states, deterministic=deterministic)
        return _dense(self.outputs, "output")(states)


class Fnn(nn.Module):
    """One hidden layer: the head of ProtTrans for proteins, and FNN of biotrainer.

    Mean over the residues, linear to `d_hidden`, dropout, activation, linear to the
    outputs. The fine-tuning notebooks of ProtTrans have `d_hidden` = d_model, tanh, and
    dropout of 0.2 of the mean and of the hidden layer; but their mean is over padding
    and special tokens too, so that it depends on the batch.

    Attributes:
      outputs: Outputs of a protein or residue.
      level: "protein", or "residue" without the mean.
      d_hidden: Size of the hidden layer.
      activation: "relu" or "tanh".
      dropout_rate: Of the hidden layer.
      input_dropout_rate: Of the inputs.
    """

    outputs: int
    level: Level = "protein"
    d_hidden: int = 32
    activation: Literal["relu", "tanh"] = "relu"
    dropout_rate: float = 0.25
    input_dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch *length outputs"]:
        """Logits or numbers."""
        if self.level == "protein":
            x = mean_of_residues(x, mask)
        x = nn.Dropout(self.input_dropout_rate)(x, deterministic=deterministic)
        x = _dense(self.d_hidden, "hidden")(x)
        # Dropout and ReLU commute; with tanh it is the order of the notebooks.
        x = {"relu": nn.relu, "tanh": jnp.tanh}[self.activation](x)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
        return _dense(self.outputs, "output")(x)


class LightAttention(nn.Module):
    """Light Attention (Staerk et al. 2021, section 2.3).

    Values and attention logits are convolutions of the residues. Their weighted sum and
    the maximum of the values are concatenated, then a hidden layer follows.

    Departures from the published code: the maximum is over real residues only, where
    there padding takes part; and there is no batch norm after the hidden layer, for it
    makes a prediction depend on the batch in training. That of a trained network is an
    affine map, and `interop` would multiply it into the output layer.

    Attributes:
      outputs: Outputs of a protein.
      d_hidden: Size of the hidden layer.
      width: Width of the convolutions.
      dropout_rate: Of the values and of the hidden layer.
    """

    outputs: int
    d_hidden: int = 32
    width: int = 9
    dropout_rate: float = 0.25

    level = "protein"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch outputs"]:
        """Logits or numbers."""
        drop = functools.partial(nn.Dropout, deterministic=deterministic)
        d_model = x.shape[-1]
        values = Convolution(d_model, self.width, name="values")(x, mask)
        values = drop(self.dropout_rate)(values)
        logits = Convolution(d_model, self.width, name="attention")(x, mask)
        real = mask[..., None]
        # Finite: a row without residues must not become NaN.
        lowest = jnp.finfo(logits.dtype).min
        weights = nn.softmax(jnp.where(real, logits, lowest), axis=1)
        weighted = jnp.sum(jnp.where(real, values * weights, 0), axis=1)
        largest = jnp.max(jnp.where(real, values, lowest), axis=1)
        largest = jnp.where(jnp.any(mask, axis=1, keepdims=True), largest, 0)
        pooled = jnp.concatenate([weighted, largest], axis=-1)
        hidden = _dense(self.d_hidden, "hidden")(pooled)
        hidden = nn.relu(drop(self.dropout_rate)(hidden))
        return _dense(self.outputs, "output")(hidden)


HEADS: dict[str, Any] = {
    "linear": Linear,
    "cnn": Cnn,
    "bilstm": BiLstm,
    "fnn": Fnn,
    "light_attention": LightAttention,
}
_OF_BOTH_LEVELS = (Linear, Fnn)


def pools_first(head: nn.Module) -> bool:
    """Whether a head needs only the mean of a protein's vectors.

    The mean can then be computed beforehand.
    """
    return isinstance(head, _OF_BOTH_LEVELS) and head.level == "protein"


def make(kind: str, level: str, outputs: int) -> nn.Module:
    """A head with the default sizes.

    Args:
      kind: A key of `HEADS`.
      level: "residue" or "protein".
      outputs: Number of outputs.

    Raises:
      ValueError: There is no such head, or not for this level.
    """
    if kind not in HEADS:
        raise ValueError(
            f"head={kind!r} is not known. Choose one of {', '.join(HEADS)}."
        )
    cls = HEADS[kind]
    if cls in _OF_BOTH_LEVELS:
        return cls(outputs=outputs, level=level)
    if cls.level != level:
        fitting = [
            name
            for name, other in HEADS.items()
            if other in _OF_BOTH_LEVELS or other.level == level
        ]
        raise ValueError(
            f"head={kind!r} predicts for each {cls.level}, the task is of a {level}. "
            f"Choose one of {', '.join(fitting)}."
        )
    return cls(outputs=outputs)
