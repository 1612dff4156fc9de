"""Denoising of proteins by an encoder-decoder: ProtT5's objective, device side.

The preprocessor of the task chooses which residues are corrupted, and how.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.data.corruption import position_kinds
from prottrans_jax.models import t5
from prottrans_jax.objectives import losses, objective


@dataclasses.dataclass(frozen=True)
class Denoising(objective.Objective):
    """Mean cross entropy of the decoder's targets, over the whole batch.

    Attributes:
      model: The encoder-decoder.
      z_loss: Weight of the squared log-normaliser; see `losses`.
      label_smoothing: Probability moved from the target to the other classes.
    """

    model: t5.T5
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        setting_types.check_range("Denoising.z_loss", self.z_loss)
        setting_types.check_range(
            "Denoising.label_smoothing", self.label_smoothing, below=1
        )

    @property
    def features(self) -> tuple[str, ...]:
        """Features of a batch that are used, all [rows, length]."""
        return (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_target_tokens",
            "decoder_segment_ids",
            "decoder_loss_weights",
            "decoder_corrupted",
        )

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any]) -> types.Params:
        """See `objective.Objective.init`."""
        inputs, targets = (
            objective.zeros_like_feature(batch_shapes, name)
            for name in ("encoder_input_tokens", "decoder_input_tokens")
        )
        return self.model.init(rng, inputs, targets, deterministic=True)["params"]

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sum of the loss weights that `__call__` divides by; additive over batches."""
        return {"targets": losses.total(batch["decoder_loss_weights"])}

    def loss(self, step: objective.Step, batch: types.Batch) -> objective.Outcome:
        """See `objective.Objective.__call__`.

        Losses among the metrics are without smoothing and z-loss.
        """
        logits = step.apply(
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
        )
        entropy = losses.softmax_cross_entropy(
            logits,
            batch["decoder_target_tokens"],
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        # A batch without targets has loss 0, not NaN.
        loss = losses.divide(
            losses.total(entropy.loss * weights), step.normalizers["targets"]
        )

        corrupted = batch["decoder_corrupted"]
        masked = weights * (corrupted == position_kinds.MASKED)
        substituted = weights * (corrupted == position_kinds.SUBSTITUTED)
        hidden = weights * (corrupted > 0)
        pairs = {
            "loss": (entropy.nll, weights),
            "accuracy": (entropy.correct, weights),
            "masked_loss": (entropy.nll, masked),
            "substituted_loss": (entropy.nll, substituted),
            "corrupted_loss": (entropy.nll, hidden),
            "corrupted_accuracy": (entropy.correct, hidden),
        }
        if self.z_loss:
            pairs["z_loss"] = (entropy.z_loss, weights)
        metrics = {name: losses.weighted(*pair) for name, pair in pairs.items()}
        encoder, decoder = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
        metrics["real_token_fraction"] = (
            losses.total(encoder > 0) + losses.total(decoder > 0),
            jnp.float32(encoder.size + decoder.size),
        )
        # Inputs without </s>, of which each segment has one. A count, not a mean.
        num_segments = losses.total(jnp.max(encoder, axis=1))
        metrics["residues"] = (
            losses.total(encoder > 0) - num_segments,
            jnp.float32(0.0),
        )
        return loss, (metrics, step.carry)

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """See `objective.Objective.flops`."""
        rows, length = types.shape_of(batch_shapes["encoder_input_tokens"])
        _, target_length = types.shape_of(batch_shapes["decoder_input_tokens"])
        return 3.0 * rows * t5.forward_flops(self.model.config, length, target_length)
