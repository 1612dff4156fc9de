"""Base class of the objectives: initial parameters, carry, and a pass of the model."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax import types
from prottrans_jax.objectives import losses

# Features of every objective that predicts tokens of its input.
TOKEN_FEATURES = ("input_tokens", "target_tokens", "loss_weights")

# A loss divided by the normalizers, and (metrics, carry).
Outcome = tuple[Float[Array, ""], tuple[types.Metrics, types.Carry]]


@dataclasses.dataclass(frozen=True)
class Step:
    """What the loss of a batch depends on besides its features.

    Attributes:
      model: The model.
      params: Its parameters (no boxes).
      normalizers: Normalizers of the whole batch; see `Objective.__call__`.
      carry: What the previous step of these rows handed on.
      rng: Key of the random draws.
      train: Whether dropout is on.
    """

    model: Any
    params: types.Params
    normalizers: Mapping[str, Float[Array, ""]]
    carry: types.Carry
    rng: jax.Array
    train: bool

    def apply(self, *inputs: Any, rng: jax.Array | None = None, **options: Any) -> Any:
        """Outputs of the model.

        Args:
          *inputs: Arguments of the model.
          rng: Key of its dropout; None uses `self.rng`.
          **options: Further arguments of the model, or of `nn.Module.apply`.
        """
        dropout_rng = self.rng if rng is None else rng
        return self.model.apply(
            {"params": self.params},
            *inputs,
            **options,
            deterministic=not self.train,
            rngs={"dropout": dropout_rng} if self.train else None,
        )


class Objective:
    """Base class: an objective is a frozen dataclass with a `model`."""

    model: Any

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used, all [rows, length]."""
        raise NotImplementedError

    def loss(self, step: Step, batch: types.Batch) -> Outcome:
        """Loss of a batch or microbatch; see `__call__`."""
        raise NotImplementedError

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """Model FLOPs of one training step on a batch of these shapes.

        A multiply-add of a matrix product counts as 2, a backward pass as two forward
        passes. Attention scores count in full (causal halves included), and heads at
        every position at which they are computed; recomputation does not count.
        """
        raise NotImplementedError

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """Parameters, boxed with their logical axis names.

        Args:
          rng: Key of the random draws.
          batch_shapes: Shape, or an object with a `shape`, of each feature.
        """
        tokens = zeros_like_feature(batch_shapes, "input_tokens")
        return self.model.init(rng, tokens, deterministic=True)["params"]

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sums of weights, which `loss` divides by; additive over batches."""
        return {"targets": losses.total(batch["loss_weights"])}

    def initial_carry(self, batch_size: int) -> types.Carry:
        """Carry of the first step. Empty: nothing is carried from step to step."""
        del batch_size
        return ()

    def __call__(
        self,
        params: types.Params,
        batch: types.Batch,
        normalizers: Mapping[str, Float[Array, ""]],
        carry: types.Carry,
        rng: jax.Array,
        *,
        train: bool,
    ) -> Outcome:
        """Loss of a batch or microbatch, its metrics, and the next carry.

        Args:
          params: Parameters (no boxes).
          batch: The features.
          normalizers: Normalizers of the whole batch: losses and gradients of its
            microbatches then add up to those of the batch.
          carry: Carry of the same rows after the previous batch.
          rng: Key of the dropout and of other random draws.
          train: Whether dropout is on.

        Returns:
          The loss divided by the normalizers, and (metrics, carry). Losses among the
          metrics are in nats.
        """
        return self.loss(
            Step(self.model, params, normalizers, carry, rng, train), batch
        )


def zeros_like_feature(
    batch_shapes: Mapping[str, Any], name: str
) -> Int[Array, "batch length"]:
    """Token ids of 0 in the shape of a feature, to initialise a model with."""
    return jnp.zeros(types.shape_of(batch_shapes[name]), jnp.int32)
