"""Masked language modelling: the objective of BERT and ALBERT, device side.

The preprocessor of the task chooses which residues are corrupted, and how.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.data.corruption import position_kinds
from prottrans_jax.models import albert, bert, electra
from prottrans_jax.objectives import losses

# Inputs of BERT-like encoders besides the tokens, by the names of their arguments.
MODEL_FEATURES = ("segment_ids", "positions", "token_types")
_FORWARD_FLOPS: Mapping[type, Callable[..., float]] = {
    bert.BertConfig: bert.forward_flops,
    albert.AlbertConfig: albert.forward_flops,
    electra.ElectraEncoderConfig: electra.forward_flops,
}


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Mean cross entropy of the predicted tokens, over the whole batch.

    Attributes:
      model: `bert.Bert`, `albert.Albert`, or a generator `electra.ElectraEncoder`.
      sentence_order_weight: Weight of the mean cross entropy of the order of a pair's
        halves (ALBERT's second objective, weight 1 there). Needs a model with
        `order_head`.
    """

    model: bert.EncoderModel
    sentence_order_weight: float = 0.0

    def __post_init__(self):
        config = self.model.config
        if not config.lm_head:
            raise ValueError("MaskedLM: the model has lm_head=False; set lm_head=True.")
        setting_types.check_range(
            "MaskedLM.sentence_order_weight", self.sentence_order_weight
        )
        if self.sentence_order_weight and not getattr(config, "order_head", False):
            raise ValueError(
                f"MaskedLM: sentence_order_weight={self.sentence_order_weight} needs a "
                "model with order_head=True."
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used, all [rows, length]."""
        order = ("order_targets", "order_weights")
        return (
            "input_tokens",
            "target_tokens",
            "loss_weights",
            "corrupted",
            *MODEL_FEATURES,
            *(order if self.sentence_order_weight else ()),
        )

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """Parameters, boxed with their logical axis names.

        Args:
          rng: Key of the random draws.
          batch_shapes: Shape, or an object with a `shape`, of each feature.
        """
        return boxed_params(self.model, rng, batch_shapes)

    def initial_carry(self, batch_size: int) -> types.Carry:
        """Empty: nothing is carried from step to step."""
        del batch_size
        return ()

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sums of weights, which `__call__` divides by; additive over batches."""
        sums = {"targets": losses.total(batch["loss_weights"])}
        if self.sentence_order_weight:
            sums["pairs"] = losses.total(batch["order_weights"])
        return sums

    def __call__(
        self,
        params: types.Params,
        batch: types.Batch,
        normalizers: Mapping[str, Float[Array, ""]],
        carry: types.Carry,
        rng: jax.Array,
        *,
        train: bool,
    ) -> tuple[Float[Array, ""], tuple[types.Metrics, types.Carry]]:
        """Loss of a batch or microbatch, and its metrics.

        Args:
          params: Parameters (no boxes).
          batch: The features.
          normalizers: Normalizers of the whole batch: losses and gradients of its
            microbatches then add up to those of the batch.
          carry: Returned unchanged.
          rng: Key of the dropout.
          train: Whether dropout is on.

        Returns:
          The loss divided by the normalizers, and (metrics, carry). The metric `loss`
          is the loss of tokens only, in nats.
        """
        outputs: Any = self.model.apply(
            {"params": params},
            batch["input_tokens"],
            **context_of(batch),
            deterministic=not train,
            rngs={"dropout": rng} if train else None,
        )
        summed, metrics = token_loss(outputs.logits, batch)
        loss = losses.divide(summed, normalizers["targets"])
        if self.sentence_order_weight:
            weights = batch["order_weights"].astype(jnp.float32)
            order = losses.softmax_cross_entropy(
                outputs.order_logits, batch["order_targets"]
            )
            metrics["order_loss"] = (
                losses.total(order.nll * weights),
                losses.total(weights),
            )
            metrics["order_accuracy"] = (
                losses.total(order.correct * weights),
                losses.total(weights),
            )
            loss += self.sentence_order_weight * losses.divide(
                metrics["order_loss"][0], normalizers["pairs"]
            )
        return loss, (metrics | row_metrics(batch), carry)

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """Model FLOPs of one training step on a batch of these shapes.

        A multiply-add of a matrix product counts as 2, a backward pass as two forward
        passes. Attention scores and heads count at every position; recomputation does
        not count.
        """
        rows, length = types.shape_of(batch_shapes["input_tokens"])
        config = self.model.config
        return 3.0 * rows * _FORWARD_FLOPS[type(config)](config, length)


# Shared with replaced-token detection:


def boxed_params(
    model: Any, rng: jax.Array, batch_shapes: Mapping[str, Any]
) -> types.Params:
    """Parameters of a model that takes tokens, boxed; see `MaskedLM.init`."""
    tokens = jnp.zeros(types.shape_of(batch_shapes["input_tokens"]), jnp.int32)
    return model.init(rng, tokens)["params"]


def context_of(batch: types.Batch) -> dict[str, Any]:
    """Inputs of the model besides the tokens."""
    return {name: batch[name] for name in MODEL_FEATURES}


def token_loss(
    logits: Float[Array, "batch length vocab"], batch: types.Batch
) -> tuple[Float[Array, ""], types.Metrics]:
    """Summed cross entropy of predicted tokens, and metrics by kind of corruption."""
    entropy = losses.softmax_cross_entropy(logits, batch["target_tokens"])
    weights = batch["loss_weights"].astype(jnp.float32)
    corrupted = batch["corrupted"]
    pairs = {
        "loss": (entropy.nll, weights),
        "accuracy": (entropy.correct, weights),
        "masked_loss": (entropy.nll, weights * (corrupted == position_kinds.MASKED)),
        "substituted_loss": (
            entropy.nll,
            weights * (corrupted == position_kinds.SUBSTITUTED),
        ),
        "kept_loss": (entropy.nll, weights * (corrupted == position_kinds.KEPT)),
        "corrupted_loss": (entropy.nll, weights * (corrupted > 0)),
    }
    metrics = {
        name: (losses.total(value * weight), losses.total(weight))
        for name, (value, weight) in pairs.items()
    }
    return metrics["loss"][0], metrics


def row_metrics(batch: types.Batch) -> types.Metrics:
    """Fraction of real tokens, and number of residues."""
    segments, token_types = batch["segment_ids"], batch["token_types"]
    num_tokens = losses.total(segments > 0)
    # [CLS] A [SEP], or [CLS] A [SEP] B [SEP], whose second half has token type 1.
    second = token_types == 1
    second_starts = second & ~jnp.pad(second[:, :-1], ((0, 0), (1, 0)))
    num_special = 2 * losses.total(jnp.max(segments, axis=1)) + losses.total(
        second_starts
    )
    return {
        "real_token_fraction": (num_tokens, jnp.float32(segments.size)),
        # A count, not a mean.
        "residues": (num_tokens - num_special, jnp.float32(0.0)),
    }
