"""Replaced-token detection: the objective of ELECTRA (Clark et al. 2020), device side.

The generator predicts the hidden tokens of a row. The discriminator reads the original
row with a sample from the generator at each hidden position, and predicts for every
token whether it was replaced. A sample that equals the original counts as original. No
gradient flows from the discriminator to the generator.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.models import electra
from prottrans_jax.objectives import losses, masked_lm, objective


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(objective.Objective):
    """Mean generator loss over predicted tokens + weight * mean discriminator loss.

    The second mean is over all real tokens of the batch, [CLS] and [SEP] included.

    Attributes:
      model: Generator and discriminator.
      discriminator_weight: 50 in the paper (appendix A).
    """

    model: electra.Electra
    discriminator_weight: float = 50.0

    def __post_init__(self):
        setting_types.check_range(
            "ReplacedTokenDetection.discriminator_weight", self.discriminator_weight
        )

    @property
    def features(self) -> tuple[str, ...]:
        """See `objective.Objective.features`."""
        return masked_lm.FEATURES

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sums of weights, which `loss` divides by; additive over batches."""
        tokens = losses.total(batch["segment_ids"] > 0)
        return super().normalizers(batch) | {"tokens": tokens}

    def loss(self, step: objective.Step, batch: types.Batch) -> objective.Outcome:
        """See `objective.Objective.__call__`. Evaluation samples too.

        The metric `loss` is the weighted sum that training minimises; `corrupted_loss`
        and similar ones are the generator's. `always_original_accuracy` is the accuracy
        of a discriminator that always predicts "original".
        """
        draw_rng, generator_rng, discriminator_rng = jax.random.split(step.rng, 3)
        context = masked_lm.context_of(batch)

        logits = step.apply(
            batch["input_tokens"],
            **context,
            method=electra.Electra.generate,
            rng=generator_rng,
        ).logits
        generator_sum, metrics = masked_lm.token_loss(logits, batch)

        targets = batch["target_tokens"]
        drawn = draw_tokens(draw_rng, jax.lax.stop_gradient(logits), targets)
        tokens = jnp.where(batch["loss_weights"] > 0, drawn, targets)
        replaced = tokens != targets
        replaced_logits = step.apply(
            tokens,
            **context,
            method=electra.Electra.discriminate,
            rng=discriminator_rng,
        ).replaced_logits
        real = batch["segment_ids"] > 0
        entropy = losses.sigmoid_cross_entropy(replaced_logits, replaced)
        discriminator_sum = losses.total(entropy * real)

        generator_loss = losses.divide(generator_sum, step.normalizers["targets"])
        loss = generator_loss + self.discriminator_weight * losses.divide(
            discriminator_sum, step.normalizers["tokens"]
        )
        correct = (replaced_logits > 0) == replaced
        num_tokens = losses.total(real)
        metrics |= {
            # Weighted so that microbatches add up to the loss of the batch.
            "loss": (loss * step.normalizers["targets"], metrics["loss"][1]),
            "generator_loss": metrics["loss"],
            "discriminator_loss": (discriminator_sum, num_tokens),
            "discriminator_accuracy": (losses.total(correct & real), num_tokens),
            "discriminator_replaced_accuracy": (
                losses.total(correct & real & replaced),
                losses.total(real & replaced),
            ),
            "always_original_accuracy": (
                losses.total(real & ~replaced),
                num_tokens,
            ),
        }
        return loss, (metrics | masked_lm.row_metrics(batch), step.carry)

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """See `objective.Objective.flops`."""
        rows, length = types.shape_of(batch_shapes["input_tokens"])
        return 3.0 * rows * electra.forward_flops(self.model.config, length)


def draw_tokens(
    rng: jax.Array,
    logits: Float[Array, "batch length vocab"],
    tokens: Int[Array, "batch length"],
) -> Int[Array, "batch length"]:
    """Samples one token per position from softmax(logits), by Gumbel noise.

    The noise of a row depends on the key and on the row's tokens, not on its place in a
    batch. Evaluation uses one key for all batches: its results do not depend on the
    batch size, yet different rows get different noise.

    Args:
      rng: Key of the noise.
      logits: Logits of each token at each position.
      tokens: Hashed into the key of each row.
    """
    length, vocab = logits.shape[1:]
    # Multiplicative hashing; sums of unsigned integers wrap around.
    factors = (np.arange(length, dtype=np.uint32) * np.uint32(2654435769)) | 1
    codes = jnp.sum((tokens.astype(jnp.uint32) + 1) * factors, axis=1)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, codes)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (length, vocab)))(keys)
    return jnp.argmax(logits + noise, axis=-1).astype(tokens.dtype)
