"""XLNet (Yang et al. 2019) as ProtXLNet uses it. Two-stream relative attention.

Features:
  - content stream: embeddings of all tokens. Query stream: the positions to predict,
    to which no position attends. Both run through the same layers
  - relative attention with a term for token types; memories as in Transformer-XL
  - post-norm residual layers, layer norm, exact gelu
  - logits from the embedding table, plus a bias

Dropout is applied where the original applies it, but with one mask for all positions of
a row, as elsewhere in this library.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prottrans_jax import types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import dropout, mlp, relative_attention, stack
from prottrans_jax.models import choices, memory_models


@dataclasses.dataclass(frozen=True)
class XLNetConfig(memory_models.MemoryConfig):
    """Sizes and switches of an XLNet; see `memory_models.MemoryConfig`.

    Attributes:
      mem_length: Number of positions in each layer's memory; 0 turns memories off.
      reuse_length: Only the first positions of a row, this many, enter the memory; 0
        means all. (In the original's pre-training, rows overlap by the others.)
      activation: Activation of the MLP; see `layers.mlp`.
      attn_type: "bi", or "uni" for a causal model.
      bi_data: Whether the second half of the rows is read backward: their distances are
        negated. (The data pipeline must reverse the rows themselves.)
      clamp_length: Larger distances share the encoding of this one; 0 clamps none.
      same_length: Whether each query of a "uni" model attends only to itself and the
        `mem_length` positions before it.
      lm_head: Whether there is a bias for the logits; without it there are no logits.
      dropout_rate: Dropout rate in training, attention weights included.
      norm_epsilon: Added to the variance in layer norm.
    """

    mem_length: int = 0
    reuse_length: int = 0
    activation: str = "gelu_exact"
    attn_type: str = "bi"
    bi_data: bool = False
    clamp_length: int = 0
    same_length: bool = False
    lm_head: bool = True
    dropout_rate: float = 0.1
    norm_epsilon: float = 1e-12

    def __post_init__(self):
        choices.check(
            self,
            attn_type=("bi", "uni"),
            activation=tuple(mlp.ACTIVATIONS),
        )


def forward_flops(config: XLNetConfig, length: int, num_targets: int) -> float:
    """FLOPs of the matrix products of one row, with full memories if there are any.

    A multiply-add is 2. The projection of the distances' encodings is done once for all
    rows and not counted.
    """
    inner = config.num_heads * config.head_dim
    queries, kv_length = length + num_targets, length + config.mem_length
    num_distances = kv_length + (length if config.attn_type == "bi" else 0)
    projections = 2 * config.d_model * inner * (queries + kv_length)
    # Query times key, query times distance, weights times value.
    scores = queries * (2 * kv_length + num_distances) * inner
    mlp_size = 2 * queries * config.d_model * config.d_ff
    logits = num_targets * config.d_model * config.vocab_size * config.lm_head
    return 2.0 * (config.num_layers * (projections + scores + mlp_size) + logits)


def init_params(
    config: XLNetConfig,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes."""
    return memory_models.init_params(XLNet(config, compute), rng)


class XLNet(memory_models.MemoryModel):
    """Permutation language model."""

    config: XLNetConfig

    def setup(self):
        """Creates the embedding table, the mask embedding, the stack and the head."""
        config, compute = self.config, self.compute
        # Before the bias of the logits: parameters are drawn in this order.
        self.mask_embedding = self.param(
            "mask_embedding",
            nn.with_logical_partitioning(memory_models.KERNEL_INIT, ("embed",)),
            (config.d_model,),
            compute.param_dtype,
        )
        super().setup()
        self.encoder = Encoder(config, compute)

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segment_ids: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        perm_mask: Float[Array, "batch length length"] | None = None,
        factorization_ranks: Int[Array, "batch length"] | None = None,
        target_positions: Int[Array, "batch targets"] | None = None,
        target_mapping: Float[Array, "batch targets length"] | None = None,
        memories: Float[Array, "layers batch mem_length d_model"] | None = None,
        memory_segments: Int[Array, "batch mem_length"] | None = None,
        deterministic: bool,
    ) -> memory_models.Output:
        """Last hidden state at the targets; at every position if there are none.

        Args:
          tokens: Token ids.
          segment_ids: Protein of each position, from 1; 0 is padding, on either side.
            None: one protein per row and no padding.
          token_types: For example 0 and 1 for two halves; memories have type 0. None
            omits the term of the token types.
          perm_mask: 1 at [row, i, j] if i may not attend to j. In the content stream a
            position always attends to itself, whatever the mask says.
          factorization_ranks: The same in compact form: i attends to j if the rank of j
            is -1 or less than that of i.
          target_positions: Positions to predict, those of the query stream. -1 is an
            unused slot, whose query attends to nothing.
          target_mapping: The same as one-hot rows, with rows of zeros for -1.
          memories: Memories from the previous call, the latest last. None: no memories.
          memory_segments: Protein of each memory, 0 for an empty slot; a position
            attends to memories of its own protein. None: to all memories, as in Hugging
            Face.
          deterministic: Whether dropout is off; if not, pass an rng named "dropout".
        """
        config = self.config
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if memories is None:
            memories, memory_segments = self.no_memories(len(tokens)), None
        if target_mapping is not None:
            if target_positions is not None:
                raise ValueError("Give target_positions or target_mapping, not both.")
            is_used = jnp.any(target_mapping != 0, axis=-1)
            target_positions = jnp.argmax(target_mapping, axis=-1)
            target_positions = jnp.where(is_used, target_positions, -1)
        mem_length = memories.shape[2]
        may_see = _order(perm_mask, factorization_ranks)
        mask = _mask(
            config, segment_ids, memory_segments, mem_length, may_see, target_positions
        )
        other_type = None
        if token_types is not None:
            kv_types = jnp.pad(token_types, ((0, 0), (mem_length, 0)))
            q_types = _append(token_types, target_positions)
            other_type = q_types[:, :, None] != kv_types[:, None, :]

        x = self.token_embedder(tokens)
        if target_positions is not None:
            queries = jnp.broadcast_to(
                jnp.asarray(self.mask_embedding),
                (*target_positions.shape, config.d_model),
            )
            # Cast after the broadcast: the gradient is a sum over all targets, which in
            # bfloat16 would be wrong by a few percent.
            x = jnp.concatenate([x, queries.astype(x.dtype)], axis=1)
        x, memories = self.encoder(
            x,
            mask,
            other_type,
            target_positions,
            memories,
            # Queries of targets would follow the content.
            segments=segment_ids if target_positions is None else None,
            deterministic=deterministic,
        )
        if target_positions is not None:
            x = x[:, tokens.shape[1] :]
        return memory_models.Output(x, memories)


def _order(perm_mask, ranks):
    """Which keys the factorisation order lets a query attend to; None: all."""
    if perm_mask is None and ranks is None:
        return None
    if perm_mask is not None:
        if ranks is not None:
            raise ValueError("Give perm_mask or factorization_ranks, not both.")
        return perm_mask == 0
    first, second = ranks[:, :, None], ranks[:, None, :]
    return (second == -1) | (second < first)


def _mask(config, segments, memory_segments, mem_length, may_see, positions):
    """Attention mask, [batch, length + targets, mem_length + length]."""
    length = segments.shape[1]
    kv_length = mem_length + length
    mask = relative_attention.visible(
        segments.astype(jnp.int32), memory_segments, mem_length
    )
    if config.attn_type == "uni":
        mask &= relative_attention.within(
            length, kv_length, mem_length if config.same_length else None
        )
    content = queries = mask
    if may_see is not None:
        before = ((0, 0), (0, 0), (mem_length, 0))
        queries = mask & jnp.pad(may_see, before, constant_values=True)
        may_see = may_see | np.eye(length, dtype=bool)
        content = mask & jnp.pad(may_see, before, constant_values=True)
    if positions is None:
        return content
    queries = jnp.take_along_axis(queries, jnp.maximum(positions, 0)[..., None], axis=1)
    queries &= (positions >= 0)[..., None]
    return jnp.concatenate([content, queries], axis=1)


def _append(values, positions):
    if positions is None:
        return values
    further = jnp.take_along_axis(values, jnp.maximum(positions, 0), axis=1)
    return jnp.concatenate([values, further], axis=1)


class Encoder(nn.Module):
    """Stack of layers for both streams: content first, then queries."""

    config: XLNetConfig
    compute: compute_config.ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries d_model"],
        mask: Bool[Array, "batch queries kv_length"],
        other_type: Bool[Array, "batch queries kv_length"] | None,
        positions: Int[Array, "batch targets"] | None,
        memories: Float[Array, "layers batch mem_length d_model"],
        *,
        segments: Int[Array, "batch queries"] | None = None,
        deterministic: bool,
    ) -> memory_models.Output:
        """Runs embedded tokens and queries through all layers."""
        config, compute = self.config, self.compute
        drop = dropout.by_row(config.dropout_rate, deterministic)
        x = nn.with_logical_constraint(drop(x), memory_models.ACTIVATION_AXES)
        mem_length = memories.shape[2]
        length = mask.shape[-1] - mem_length
        distance = relative_attention.distances(
            length, mem_length + length, causal=config.attn_type == "uni"
        )
        if config.clamp_length:
            distance = np.clip(distance, -config.clamp_length, config.clamp_length)
        encoding = relative_attention.position_encoding(distance, config.d_model)
        # One mask for all rows: they share the distances.
        encoding = nn.Dropout(config.dropout_rate)(
            encoding, deterministic=deterministic
        )
        directions = [encoding]
        if config.bi_data:
            directions.append(relative_attention.mirror(encoding))
        x, memories = stack.apply_layers_with_memories(
            Layer,
            x,
            relative_attention.Surroundings(
                mask, jnp.stack(directions), positions, other_type, segments
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


class Layer(memory_models.MemoryLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)), for both streams at once."""

    config: XLNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries d_model"],
        surroundings: relative_attention.Surroundings,
        memory: Float[Array, "batch mem_length d_model"],
    ):
        """One layer, with the signature that `layers.stack` expects."""
        config = self.config
        drop = dropout.by_row(config.dropout_rate, self.deterministic)
        self.sow("intermediates", "input", x)
        length = surroundings.mask.shape[-1] - memory.shape[1]
        content = x[:, :length]
        new_memory = relative_attention.remember(
            memory, content[:, : config.reuse_length or None], config.mem_length
        )
        context = jnp.concatenate([memory.astype(x.dtype), content], axis=1)
        y = self.attention(config.dropout_rate, token_types=True)(
            x, context, surroundings
        )
        x = self.norm("attention_layer_norm")(x, drop(y))
        x = nn.with_logical_constraint(x, memory_models.ACTIVATION_AXES)
        y = self.mlp(config.activation)(x, surroundings.segments)
        x = self.norm("mlp_layer_norm")(x, drop(y))
        x = nn.with_logical_constraint(x, memory_models.ACTIVATION_AXES)
        return x, new_memory
