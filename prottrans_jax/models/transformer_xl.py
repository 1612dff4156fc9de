"""Transformer-XL (Dai et al. 2019) as ProtTXL uses it. Decoder with memories.

Features:
  - relative attention; every layer also attends to its inputs of earlier calls
  - post-norm residual layers, or pre-norm by config; layer norm, ReLU
  - embeddings times sqrt(d_model); logits from the same table, plus a bias
ProtTXL's vocabulary is the amino acids, so there is no adaptive softmax.

Dropout is applied where the original applies it, but with one mask for all positions of
a row, as elsewhere in this library.
"""

import dataclasses

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import dropout, relative_attention, stack
from prottrans_jax.models import choices, memory_models


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(memory_models.MemoryConfig):
    """Sizes and switches of a Transformer-XL; see `memory_models.MemoryConfig`.

    Attributes:
      mem_length: Number of positions in each layer's memory.
      clamp_length: Larger distances share the encoding of this one; 0 clamps none.
      same_length: Whether each query attends to the last `mem_length` positions only,
        itself included.
      pre_norm: Whether norms are before attention and MLP, not after the residual sums.
      shared_biases: Whether all layers share the global attention biases.
      lm_head: Whether there is a bias for the logits; without it there are no logits.
      frequencies: Frequencies of the position encoding, [d_model / 2], for checkpoints
        that store rounded ones; None: as in the paper.
      dropout_rate: Dropout rate in training.
      attention_dropout_rate: Dropout rate of the attention weights.
      norm_epsilon: Added to the variance in layer norm.
    """

    mem_length: int
    clamp_length: int = 0
    same_length: bool = False
    pre_norm: bool = False
    shared_biases: bool = False
    lm_head: bool = True
    # Omitted from a run's identity while None: earlier versions did not have it.
    frequencies: tuple[float, ...] | None = dataclasses.field(
        default=None, metadata={"omit_default": True}
    )
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        choices.check(self)
        if self.same_length and not self.mem_length:
            raise ValueError(
                "TransformerXLConfig.same_length=True with mem_length=0: queries have "
                "nothing to attend to. Set mem_length, or same_length=False."
            )
        if self.frequencies is not None:
            setting_types.replace_fields(self, frequencies=tuple(self.frequencies))
            if len(self.frequencies) != self.d_model // 2:
                raise ValueError(
                    f"TransformerXLConfig.frequencies has {len(self.frequencies)} "
                    f"values; d_model={self.d_model} needs {self.d_model // 2}."
                )


def forward_flops(config: TransformerXLConfig, length: int) -> float:
    """FLOPs of the matrix products of one row with full memories.

    A multiply-add is 2. The projection of the distances' encodings is done once for all
    rows and not counted.
    """
    inner = config.num_heads * config.head_dim
    kv_length = length + config.mem_length
    # Keys and values of the memories are projected in every call.
    projections = 2 * config.d_model * inner * (length + kv_length)
    # Query times key, query times distance, weights times value.
    scores = 3 * length * kv_length * inner
    mlp_size = 2 * length * config.d_model * config.d_ff
    logits = length * config.d_model * config.vocab_size * config.lm_head
    return 2.0 * (config.num_layers * (projections + scores + mlp_size) + logits)


def init_params(
    config: TransformerXLConfig,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes."""
    return memory_models.init_params(TransformerXL(config, compute), rng)


class TransformerXL(memory_models.MemoryModel):
    """Causal language model with memories."""

    config: TransformerXLConfig

    def setup(self):
        """Creates the embedding table, the stack and the head."""
        super().setup()
        self.decoder = Decoder(self.config, self.compute)

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segment_ids: Int[Array, "batch length"] | None = None,
        memories: Float[Array, "layers batch mem_length d_model"] | None = None,
        memory_segments: Int[Array, "batch mem_length"] | None = None,
        deterministic: bool,
    ) -> memory_models.Output:
        """The last hidden state, each position from those before it, and new memories.

        Args:
          tokens: Token ids.
          segment_ids: Protein of each position, from 1; 0 is padding. None: one protein
            per row and no padding.
          memories: Memories from the previous call, the latest last. None: no memories.
          memory_segments: Protein of each memory, 0 for an empty slot; a position
            attends to memories of its own protein. None: to all memories, empty slots
            (zeros) included, as in Hugging Face.
          deterministic: Whether dropout is off; if not, pass an rng named "dropout".
        """
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if memories is None:
            memories, memory_segments = self.no_memories(len(tokens)), None
        x = self.token_embedder(tokens) * self.config.d_model**0.5
        return self.decoder(
            x,
            segment_ids.astype(jnp.int32),
            memories,
            memory_segments,
            deterministic=deterministic,
        )


@struct.dataclass
class _Shared:
    """Inputs that all layers share."""

    surroundings: relative_attention.Surroundings
    biases: relative_attention.GlobalBiases | None


class Decoder(nn.Module):
    """Stack of causal layers with memories."""

    config: TransformerXLConfig
    compute: compute_config.ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"],
        memories: Float[Array, "layers batch mem_length d_model"],
        memory_segments: Int[Array, "batch mem_length"] | None,
        *,
        deterministic: bool,
    ) -> memory_models.Output:
        """Runs embedded tokens through all layers."""
        config, compute = self.config, self.compute
        drop = dropout.by_row(config.dropout_rate, deterministic)
        x = nn.with_logical_constraint(drop(x), memory_models.ACTIVATION_AXES)
        biases = None
        if config.shared_biases:
            biases = relative_attention.global_biases(
                self, config.num_heads, config.head_dim, compute.param_dtype
            )
        length, mem_length = x.shape[1], memories.shape[2]
        x, memories = stack.apply_layers_with_memories(
            Layer,
            x,
            _Shared(
                self._surroundings(
                    length, mem_length, segments, memory_segments, deterministic
                ),
                biases,
            ),
            memories,
            num_layers=config.num_layers,
            compute=compute,
            config=config,
            deterministic=deterministic,
        )
        x = drop(x)
        self.sow("intermediates", "output", x)
        return memory_models.Output(x, memories)

    def _surroundings(
        self, length, mem_length, segments, memory_segments, deterministic
    ):
        config = self.config
        kv_length = mem_length + length
        mask = relative_attention.visible(segments, memory_segments, mem_length)
        mask &= relative_attention.within(
            length, kv_length, config.mem_length - 1 if config.same_length else None
        )
        distance = relative_attention.distances(length, kv_length, causal=True)
        if config.clamp_length:
            distance = np.minimum(distance, config.clamp_length)
        encoding = relative_attention.position_encoding(
            distance, config.d_model, config.frequencies
        )
        # One mask for all rows: they share the distances.
        encoding = nn.Dropout(config.dropout_rate)(
            encoding, deterministic=deterministic
        )
        return relative_attention.Surroundings(mask, encoding[None], segments=segments)


class Layer(memory_models.MemoryLayer):
    """Post-norm: norm(x + attention(x)), then norm(x + mlp(x))."""

    config: TransformerXLConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        shared: _Shared,
        memory: Float[Array, "batch mem_length d_model"],
    ):
        """One layer, with the signature that `layers.stack` expects."""
        config = self.config
        drop = dropout.by_row(config.dropout_rate, self.deterministic)
        self.sow("intermediates", "input", x)
        new_memory = relative_attention.remember(memory, x, config.mem_length)

        attention_norm = self.norm("attention_layer_norm")
        context = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        if config.pre_norm:
            context = attention_norm(context)
        y = self.attention(config.attention_dropout_rate)(
            context[:, memory.shape[1] :], context, shared.surroundings, shared.biases
        )
        x = x + drop(y) if config.pre_norm else attention_norm(x, drop(y))
        x = nn.with_logical_constraint(x, memory_models.ACTIVATION_AXES)

        mlp_norm = self.norm("mlp_layer_norm")
        y = self.mlp("relu")(
            mlp_norm(x) if config.pre_norm else x, shared.surroundings.segments
        )
        x = x + drop(y) if config.pre_norm else mlp_norm(x, drop(y))
        x = nn.with_logical_constraint(x, memory_models.ACTIVATION_AXES)
        return x, new_memory
