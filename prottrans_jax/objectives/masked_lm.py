"""Masked language modelling: the objective of BERT and ALBERT, device side.

The preprocessor of the task chooses which residues are corrupted, and how.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.data.corruption import position_kinds
from prottrans_jax.models import albert, bert, electra
from prottrans_jax.objectives import losses, objective

# Inputs of BERT-like encoders besides the tokens, by the names of their arguments.
MODEL_FEATURES = ("segment_ids", "positions", "token_types")
# Features of objectives that predict hidden tokens with such an encoder.
FEATURES = (*objective.TOKEN_FEATURES, "corrupted", *MODEL_FEATURES)
_FORWARD_FLOPS: Mapping[type, Callable[..., float]] = {
    bert.BertConfig: bert.forward_flops,
    albert.AlbertConfig: albert.forward_flops,
    electra.ElectraEncoderConfig: electra.forward_flops,
}


@dataclasses.dataclass(frozen=True)
class MaskedLM(objective.Objective):
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
        """See `objective.Objective.features`."""
        order = ("order_targets", "order_weights")
        return (*FEATURES, *(order if self.sentence_order_weight else ()))

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sums of weights, which `loss` divides by; additive over batches."""
        sums = super().normalizers(batch)
        if self.sentence_order_weight:
            sums["pairs"] = losses.total(batch["order_weights"])
        return sums

    def loss(self, step: objective.Step, batch: types.Batch) -> objective.Outcome:
        """See `objective.Objective.__call__`.

        The metric `loss` is the loss of tokens only.
        """
        outputs = step.apply(batch["input_tokens"], **context_of(batch))
        summed, metrics = token_loss(outputs.logits, batch)
        loss = losses.divide(summed, step.normalizers["targets"])
        if self.sentence_order_weight:
            weights = batch["order_weights"].astype(jnp.float32)
            order = losses.softmax_cross_entropy(
                outputs.order_logits, batch["order_targets"]
            )
            metrics["order_loss"] = losses.weighted(order.nll, weights)
            metrics["order_accuracy"] = losses.weighted(order.correct, weights)
            loss += self.sentence_order_weight * losses.divide(
                metrics["order_loss"][0], step.normalizers["pairs"]
            )
        return loss, (metrics | row_metrics(batch), step.carry)

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """See `objective.Objective.flops`."""
        rows, length = types.shape_of(batch_shapes["input_tokens"])
        config = self.model.config
        return 3.0 * rows * _FORWARD_FLOPS[type(config)](config, length)


# Shared with replaced-token detection:


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
    metrics = {name: losses.weighted(*pair) for name, pair in pairs.items()}
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
