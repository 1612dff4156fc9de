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
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import (
    dropout,
    embeddings,
    mlp,
    norms,
    relative_attention,
    stack,
)
from prottrans_jax.models import choices

_ACTIVATION_AXES = ("batch", "length", "embed")
_KERNEL_INIT = nn.initializers.normal(stddev=0.02)


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig:
    """Sizes and switches of a Transformer-XL.

    Attributes:
      vocab_size: Rows of the embedding table.
      num_layers: Number of layers.
      num_heads: Attention heads.
      head_dim: Size of a head; num_heads * head_dim need not be d_model.
      d_model: Width of the residual stream; even.
      d_ff: Width of the MLP's hidden layer.
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

    vocab_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_model: int
    d_ff: int
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
    tokens = jnp.zeros((1, 1), jnp.int32)
    model = TransformerXL(config, compute)
    method = TransformerXL.__call__ if config.lm_head else TransformerXL.hidden
    variables: Any = model.init(rng, tokens, deterministic=True, method=method)
    return nn.unbox(variables["params"])


class Output(NamedTuple):
    """Output of a call.

    Attributes:
      values: Logits, float32, or the last hidden state.
      memories: For the next call, [layers, batch, at most mem_length, d_model];
        gradients are stopped.
    """

    values: Float[Array, "batch length features"]
    memories: Float[Array, "layers batch new_length d_model"]


class TransformerXL(nn.Module):
    """Causal language model with memories."""

    config: TransformerXLConfig
    compute: compute_config.ComputeConfig = compute_config.DEFAULT
    has_dot_product_attention: ClassVar[bool] = False
    max_length: ClassVar[None] = None

    def setup(self):
        """Creates the embedding table, the stack and the head."""
        config, compute = self.config, self.compute
        compute.refuse_fused_attention("relative attention has no fused kernel")
        self.token_embedder = embeddings.TokenEmbedding(
            config.vocab_size,
            config.d_model,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            embedding_init=_KERNEL_INIT,
            axes=("small_vocab", "embed"),
        )
        self.decoder = Decoder(config, compute)
        if config.lm_head:
            self.logits_bias = self.param(
                "logits_bias",
                nn.with_logical_partitioning(
                    nn.initializers.zeros_init(), ("small_vocab",)
                ),
                (config.vocab_size,),
                compute.param_dtype,
            )

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segment_ids: Int[Array, "batch length"] | None = None,
        memories: Float[Array, "layers batch mem_length d_model"] | None = None,
        memory_segments: Int[Array, "batch mem_length"] | None = None,
        deterministic: bool,
    ) -> Output:
        """Logits of the token after each position, and new memories.

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
        x, memories = self.hidden(
            tokens,
            segment_ids=segment_ids,
            memories=memories,
            memory_segments=memory_segments,
            deterministic=deterministic,
        )
        logits = self.token_embedder.attend(x) + self.logits_bias
        logits = nn.with_logical_constraint(logits, ("batch", "length", "small_vocab"))
        return Output(logits, memories)

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segment_ids: Int[Array, "batch length"] | None = None,
        memories: Float[Array, "layers batch mem_length d_model"] | None = None,
        memory_segments: Int[Array, "batch mem_length"] | None = None,
        deterministic: bool,
    ) -> Output:
        """The last hidden state, and new memories; arguments as in `__call__`."""
        config, compute = self.config, self.compute
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if memories is None:
            shape = (config.num_layers, len(tokens), 0, config.d_model)
            memories, memory_segments = jnp.zeros(shape, compute.dtype), None
        x = self.token_embedder(tokens) * config.d_model**0.5
        return self.decoder(
            x,
            segment_ids.astype(jnp.int32),
            memories,
            memory_segments,
            deterministic=deterministic,
        )

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch length d_model"]:
        """Representations of all positions, each from itself and those before it.

        Args:
          tokens: Token ids.
          mask: True at real positions, or segment ids (0 is padding) for packed rows.
          deterministic: Whether dropout is off.
        """
        out = self.hidden(
            tokens, segment_ids=mask.astype(jnp.int32), deterministic=deterministic
        )
        return out.values


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
    ) -> Output:
        """Runs embedded tokens through all layers."""
        config, compute = self.config, self.compute
        drop = dropout.by_row(config.dropout_rate, deterministic)
        x = nn.with_logical_constraint(drop(x), _ACTIVATION_AXES)
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
        return Output(x, memories)

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


class Layer(nn.Module):
    """Post-norm: norm(x + attention(x)), then norm(x + mlp(x))."""

    config: TransformerXLConfig
    compute: compute_config.ComputeConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        shared: _Shared,
        memory: Float[Array, "batch mem_length d_model"],
    ):
        """One layer, with the signature that `layers.stack` expects."""
        config, compute = self.config, self.compute
        drop = dropout.by_row(config.dropout_rate, self.deterministic)
        self.sow("intermediates", "input", x)
        new_memory = relative_attention.remember(memory, x, config.mem_length)

        def norm(name):
            return norms.LayerNorm(
                config.norm_epsilon,
                dtype=compute.dtype,
                param_dtype=compute.param_dtype,
                name=name,
            )

        attention_norm = norm("attention_layer_norm")
        context = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        if config.pre_norm:
            context = attention_norm(context)
        y = relative_attention.RelativeAttention(
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            dropout_rate=config.attention_dropout_rate,
            deterministic=self.deterministic,
            kernel_init=_KERNEL_INIT,
            block_size=compute.block_size,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            name="attention",
        )(context[:, memory.shape[1] :], context, shared.surroundings, shared.biases)
        x = x + drop(y) if config.pre_norm else attention_norm(x, drop(y))
        x = nn.with_logical_constraint(x, _ACTIVATION_AXES)

        mlp_norm = norm("mlp_layer_norm")
        y = mlp.MLP(
            d_ff=config.d_ff,
            activations=("relu",),
            dropout_rate=config.dropout_rate,
            deterministic=self.deterministic,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            use_bias=True,
            kernel_init=_KERNEL_INIT,
            name="mlp",
        )(mlp_norm(x) if config.pre_norm else x, shared.surroundings.segments)
        x = x + drop(y) if config.pre_norm else mlp_norm(x, drop(y))
        return nn.with_logical_constraint(x, _ACTIVATION_AXES), new_memory
