"""Permutation language modelling: XLNet's objective, device side.

The preprocessor of the task chooses the predicted positions and their order. Predicted
tokens are part of the input, but predictions come from the query stream, which does not
attend to tokens of the same or a later rank.

The original carries memories from row to row. Only the first half of each row enters
the memory, since the next row starts there ("reuse"). Rows here hold whole proteins,
which are unrelated, so `memories` is off by default: our choice. If rows continue in
the next batch (`data.rows.lanes`), whole rows enter the memory, unless the model's
`reuse_length` is less.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.models import xlnet
from prottrans_jax.objectives import causal_lm, losses, objective


@dataclasses.dataclass(frozen=True)
class PermutationLM(objective.Objective):
    """Mean cross entropy of the predicted tokens, over the whole batch.

    Attributes:
      model: The two-stream model.
      max_targets: Queries per row. Each query costs as much as one more token. Targets
        beyond this number are dropped; their share is the metric `targets_left_out`.
        None: as many as a row has positions.
      memories: Whether rows have memories of the previous batch. Needs a model with
        `mem_length`, and rows that continue from batch to batch.
    """

    model: xlnet.XLNet
    max_targets: int | None = None
    memories: bool = False

    def __post_init__(self):
        setting_types.check_range("PermutationLM.max_targets", self.max_targets, 1)
        if self.memories and not self.model.config.mem_length:
            raise ValueError(
                "PermutationLM.memories=True, but the model's mem_length is 0. Set "
                "XLNetConfig.mem_length, or memories=False."
            )

    @property
    def features(self) -> tuple[str, ...]:
        """See `objective.Objective.features`."""
        context = ("segment_ids", "positions", "token_types", "factorization_ranks")
        return (*objective.TOKEN_FEATURES, *context)

    def initial_carry(self, batch_size: int) -> types.Carry:
        """Empty memories; `()` if `memories` is False."""
        if not self.memories:
            return ()
        return causal_lm.empty_memories(self.model, batch_size)

    def normalizers(self, batch: types.Batch) -> dict[str, Float[Array, ""]]:
        """Sum of the weights of predicted tokens; additive over batches."""
        weights, _ = self._split_weights(batch)
        return {"targets": losses.total(weights)}

    def _split_weights(self, batch):
        """Loss weights of the first `max_targets` predicted tokens, and of the rest."""
        weights = batch["loss_weights"].astype(jnp.float32)
        if self.max_targets is None:
            return weights, jnp.zeros_like(weights)
        within = jnp.cumsum(weights > 0, axis=1) <= self.max_targets
        return jnp.where(within, weights, 0.0), jnp.where(within, 0.0, weights)

    def loss(self, step: objective.Step, batch: types.Batch) -> objective.Outcome:
        """See `objective.Objective.__call__`; the carry holds memories, if any."""
        weights, left_out = self._split_weights(batch)
        segments = batch["segment_ids"]
        length = segments.shape[1]
        slots = length if self.max_targets is None else min(self.max_targets, length)
        # Predicted positions first, in row order.
        positions = jnp.argsort(weights == 0, axis=1, stable=True)[:, :slots]

        def at_targets(values):
            return jnp.take_along_axis(values, positions, axis=1)

        weights = at_targets(weights)
        out = step.apply(
            batch["input_tokens"],
            segment_ids=segments,
            token_types=batch["token_types"],
            factorization_ranks=batch["factorization_ranks"],
            target_positions=jnp.where(weights > 0, positions, -1),
            **causal_lm.memory_inputs(step.carry),
        )
        targets = at_targets(batch["target_tokens"])
        entropy = losses.softmax_cross_entropy(out.values, targets)
        metrics = causal_lm.token_metrics(entropy, weights)
        loss = losses.divide(metrics["loss"][0], step.normalizers["targets"])
        if self.max_targets is not None:
            num_left_out = losses.total(left_out > 0)
            metrics["targets_left_out"] = (
                num_left_out,
                num_left_out + losses.total(weights > 0),
            )
        metrics |= causal_lm.row_metrics(batch, special_tokens=2)  # <sep> <cls>
        remembered = segments[:, : self.model.config.reuse_length or None]
        return loss, (metrics, causal_lm.advance(step.carry, out.memories, remembered))

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """See `objective.Objective.flops`."""
        rows, length = types.shape_of(batch_shapes["input_tokens"])
        targets = length if self.max_targets is None else min(self.max_targets, length)
        config = self.model.config
        if not self.memories:
            config = dataclasses.replace(config, mem_length=0)
        return 3.0 * rows * xlnet.forward_flops(config, length, targets)
