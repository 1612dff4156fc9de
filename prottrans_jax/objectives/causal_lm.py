"""Causal language modelling with memories: Transformer-XL's objective, device side.

Row b of a batch continues row b of the previous batch (`data.rows.lanes`). Memories of
each layer are carried from step to step; gradients through them are stopped.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax import types
from prottrans_jax.models import memory_models, transformer_xl
from prottrans_jax.objectives import losses, objective


@dataclasses.dataclass(frozen=True)
class CausalLM(objective.Objective):
    """Mean cross entropy of the next token, over the whole batch.

    Attributes:
      model: The decoder.
      attend_across_proteins: Whether positions attend to everything before them in the
        row and the memories, as in the original; else to their own protein only.
    """

    model: transformer_xl.TransformerXL
    attend_across_proteins: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """See `objective.Objective.features`."""
        return (*objective.TOKEN_FEATURES, "segment_ids", "positions")

    def initial_carry(self, batch_size: int) -> types.Carry:
        """Empty memories; see `empty_memories`."""
        return empty_memories(self.model, batch_size)

    def loss(self, step: objective.Step, batch: types.Batch) -> objective.Outcome:
        """See `objective.Objective.__call__`; the carry holds the memories."""
        segments = batch["segment_ids"]
        if self.attend_across_proteins:
            segments = (segments > 0).astype(jnp.int32)
        out = step.apply(
            batch["input_tokens"], segment_ids=segments, **memory_inputs(step.carry)
        )
        entropy = losses.softmax_cross_entropy(out.values, batch["target_tokens"])
        weights = batch["loss_weights"].astype(jnp.float32)
        metrics = token_metrics(entropy, weights)
        loss = losses.divide(metrics["loss"][0], step.normalizers["targets"])
        metrics |= row_metrics(batch, special_tokens=1)  # <eos>
        return loss, (metrics, advance(step.carry, out.memories, segments))

    def flops(self, batch_shapes: Mapping[str, Any]) -> float:
        """See `objective.Objective.flops`."""
        rows, length = types.shape_of(batch_shapes["input_tokens"])
        return 3.0 * rows * transformer_xl.forward_flops(self.model.config, length)


# Shared with permutation language modelling:


def empty_memories(model: memory_models.MemoryModel, batch_size: int) -> types.Carry:
    """Carry of the first step: memories that belong to no protein.

    Returns:
      `states` [batch, layers, mem_length, d_model] in the type of the activations, and
      `segments` [batch, mem_length], the protein of each memory, 0 for an empty slot.
      The first axis of every leaf is rows, as microbatches and meshes require. `()` if
      `mem_length` is 0.
    """
    config = model.config
    if not config.mem_length:
        return ()
    shape = (batch_size, config.num_layers, config.mem_length, config.d_model)
    return {
        "states": jnp.zeros(shape, model.compute.dtype),
        "segments": jnp.zeros((batch_size, config.mem_length), jnp.int32),
    }


def memory_inputs(carry: types.Carry) -> dict[str, Any]:
    """Arguments for a model with memories, from the carry."""
    if not carry:
        return {}
    return {
        "memories": jnp.swapaxes(carry["states"], 0, 1),
        "memory_segments": carry["segments"],
    }


def advance(
    carry: types.Carry,
    memories: Float[Array, "layers batch mem_length d_model"],
    segments: Int[Array, "batch length"],
) -> types.Carry:
    """The carry of the next step.

    Args:
      carry: Carry of this step.
      memories: New memories from the model.
      segments: Protein of each position of this step that enters the memories.
    """
    if not carry:
        return ()
    mem_length = carry["segments"].shape[1]
    segments = jnp.concatenate([carry["segments"], segments], axis=1)
    return {
        "states": jnp.swapaxes(memories, 0, 1).astype(carry["states"].dtype),
        "segments": segments[:, -mem_length:],
    }


def token_metrics(
    entropy: losses.CrossEntropy, weights: Float[Array, "*positions"]
) -> types.Metrics:
    """Loss and accuracy. `corrupted_loss` equals `loss`: every target is hidden."""
    loss = losses.weighted(entropy.nll, weights)
    accuracy = losses.weighted(entropy.correct, weights)
    return {"loss": loss, "accuracy": accuracy, "corrupted_loss": loss}


def row_metrics(batch: types.Batch, special_tokens: int) -> types.Metrics:
    """Fraction of real tokens, and number of residues.

    Args:
      batch: With `segment_ids`, and `positions` from 0 in each protein.
      special_tokens: Number of tokens per protein that are not residues. They count in
        the row where the protein begins.
    """
    real = batch["segment_ids"] > 0
    num_proteins = losses.total(real & (batch["positions"] == 0))
    residues = losses.total(real) - special_tokens * num_proteins
    return {
        "real_token_fraction": (losses.total(real), jnp.float32(real.size)),
        # A count, not a mean.
        "residues": (residues, jnp.float32(0.0)),
    }
