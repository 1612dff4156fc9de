"""T5 (Raffel et al. 2020) as ProtT5 uses it. Encoder-decoder, relative position bias.

Features of T5 1.0, the ProtT5 models:
  - pre-norm residual layers; RMS norm without mean or bias, epsilon 1e-6
  - one table of relative position biases per stack, shared by its layers
  - scores not scaled by 1/sqrt(head_dim); no biases anywhere; ReLU
  - logits from the embedding table; decoder output times d_model^-0.5
T5 1.1 by config: `mlp_activations=("gelu", "linear")`, `tie_embeddings=False`.

Dropout is applied where T5X applies it, also with one mask for all positions of a row.
Names and shapes of parameters are T5X's; a scanned stack has its layer axis first.
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax import types
from prottrans_jax.config import setting_types
from prottrans_jax.layers import (
    attention,
    dense,
    dropout,
    embeddings,
    mlp,
    norms,
    relative_bias,
    stack,
)
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import choices

_ACTIVATION_AXES = ("batch", "length", "embed")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and switches of a T5.

    Attributes:
      vocab_size: Rows of the embedding table; 128 in ProtT5.
      num_layers: Layers of the encoder.
      num_decoder_layers: Layers of the decoder.
      num_heads: Attention heads.
      head_dim: Size of a head; num_heads * head_dim need not be d_model.
      d_model: Width of the residual stream.
      d_ff: Width of the MLP's hidden layer.
      mlp_activations: ("relu",) is T5 1.0, ("gelu", "linear") T5 1.1.
      dropout_rate: Dropout rate in training.
      relative_num_buckets: Buckets of the relative bias.
      relative_max_distance: From this distance on, all distances share the last bucket.
      share_relative_bias: Whether all layers of a stack share one relative bias, as in
        T5; False gives each layer its own, as in T5X's `scalable_t5` and uMT5.
      norm_epsilon: Added to the mean square in RMS norm.
      tie_embeddings: Whether the logits use the embedding table.
    """

    vocab_size: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    mlp_activations: tuple[str, ...] = ("relu",)
    dropout_rate: float = 0.1
    relative_num_buckets: int = 32
    relative_max_distance: int = 128
    share_relative_bias: bool = True
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self):
        # gin binds lists.
        setting_types.replace_fields(self, mlp_activations=tuple(self.mlp_activations))
        choices.check(self, mlp_activations=tuple(mlp.ACTIVATIONS))
        # Number of buckets of one distance each; larger distances share buckets.
        exact = self.relative_num_buckets // (2 if self.num_decoder_layers else 4)
        if self.relative_num_buckets < 4 or self.relative_max_distance <= exact:
            raise ValueError(
                f"T5Config.relative_num_buckets={self.relative_num_buckets} and "
                f"relative_max_distance={self.relative_max_distance}: there must be at "
                f"least 4 buckets, and the distance must be more than {exact}, the "
                "number of buckets that hold a single distance."
            )


def forward_flops(config: T5Config, length: int, target_length: int) -> float:
    """FLOPs of the matrix products of one row: a multiply-add is 2."""
    inner = config.num_heads * config.head_dim
    projections = 4 * config.d_model * inner  # query, key, value, out
    mlp_size = (len(config.mlp_activations) + 1) * config.d_model * config.d_ff

    def scores(queries, keys):
        return 2 * queries * keys * inner  # query times key, weights times value

    encoder = length * (projections + mlp_size) + scores(length, length)
    decoder = (
        target_length * (projections + mlp_size)
        + scores(target_length, target_length)
        # Cross-attention: query and out for targets, key and value for inputs.
        + (target_length + length) * projections / 2
        + scores(target_length, length)
    )
    logits = target_length * config.d_model * config.vocab_size
    return 2.0 * (
        config.num_layers * encoder + config.num_decoder_layers * decoder + logits
    )


def init_params(
    config: T5Config,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes; without decoder layers, no decoder part."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    model = T5(config, compute)
    if config.num_decoder_layers:
        variables = model.init(rng, tokens, tokens, deterministic=True)
    else:
        variables = model.init(
            rng, tokens, tokens, deterministic=True, method=T5.encode
        )
    return nn.unbox(variables["params"])


class T5(nn.Module):
    """Encoder-decoder with a language-model head."""

    config: T5Config
    compute: compute_config.ComputeConfig = compute_config.DEFAULT
    has_dot_product_attention: ClassVar[bool] = True
    max_length: ClassVar[None] = None

    def setup(self):
        """Creates the embedding table that both stacks share, and the stacks."""
        config, compute = self.config, self.compute
        self.token_embedder = embeddings.TokenEmbedding(
            config.vocab_size,
            config.d_model,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
        )
        self.encoder = Encoder(config, compute)
        self.decoder = Decoder(config, compute, self.token_embedder)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "batch q_length"],
        decoder_input_tokens: Int[Array, "batch length"],
        *,
        encoder_segment_ids: Int[Array, "batch q_length"] | None = None,
        decoder_segment_ids: Int[Array, "batch length"] | None = None,
        deterministic: bool,
    ) -> Float[Array, "batch length vocab"]:
        """Logits of the targets at each decoder position, float32.

        Args:
          encoder_input_tokens: Tokens of the encoder.
          decoder_input_tokens: Targets shifted right; the first is pad (0).
          encoder_segment_ids: Protein of each position, from 1; 0 is padding. None: one
            protein per row, and token 0 is padding.
          decoder_segment_ids: The same for the decoder. Protein k of the decoder
            attends to protein k of the encoder only. None: one protein per row and no
            padding (token 0 is also the first decoder input).
          deterministic: Whether dropout is off; if not, pass an rng named "dropout".
        """
        if encoder_segment_ids is not None or decoder_segment_ids is not None:
            self.compute.refuse_fused_attention("rows with segment ids may be packed")
        if encoder_segment_ids is None:
            encoder_segment_ids = (encoder_input_tokens != 0).astype(jnp.int32)
        encoded = self.encode(
            encoder_input_tokens, encoder_segment_ids, deterministic=deterministic
        )
        return self.decode(
            encoded,
            encoder_segment_ids,
            decoder_input_tokens,
            decoder_segment_ids,
            deterministic=deterministic,
        )

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length d_model"]:
        """Representations of all positions, after the encoder's last norm.

        Args:
          tokens: Token ids.
          mask: True at real positions, or segment ids (0 is padding) for packed rows.
          deterministic: Whether dropout is off.
        """
        x = self.token_embedder(tokens)
        return self.encoder(x, mask.astype(jnp.int32), deterministic=deterministic)

    def decode(
        self,
        encoded: Float[Array, "batch kv_length d_model"],
        encoder_segment_ids: Int[Array, "batch kv_length"],
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"] | None = None,
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length vocab"]:
        """Logits given the encoder's output; arguments as in `__call__`."""
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        return self.decoder(
            self.token_embedder(tokens),
            encoded,
            segment_ids,
            encoder_segment_ids.astype(jnp.int32),
            deterministic=deterministic,
        )


@struct.dataclass
class _Shared:
    """Inputs that all layers of a stack share."""

    segments: Int[Array, "batch length"]
    bias: attention.Bias | None  # None: each layer makes its own.
    encoded: Float[Array, "batch kv_length d_model"] | None = None
    encoded_segments: Int[Array, "batch kv_length"] | None = None


class _Stack(nn.Module):
    """What both stacks share. `run` is called in a compact method."""

    config: T5Config
    compute: compute_config.ComputeConfig

    def run(
        self,
        layer: type["_Layer"],
        num_layers: int,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"],
        *context: Any,
        norm: str,
        deterministic: bool,
    ) -> Float[Array, "batch length d_model"]:
        """Dropout, all layers, the last norm, dropout; `context` is the decoder's."""
        config, compute = self.config, self.compute
        drop = dropout.by_row(config.dropout_rate, deterministic)
        x = drop(x)
        x = nn.with_logical_constraint(x, _ACTIVATION_AXES)
        bias = None
        if config.share_relative_bias:
            bias = _relative_bias(config, compute, x.shape[1], causal=layer.causal)
        x = stack.apply_layers(
            layer,
            x,
            _Shared(segments, bias, *context),
            num_layers=num_layers,
            compute=compute,
            config=config,
            deterministic=deterministic,
        )
        x = make_norm(config, compute, norm)(x)
        x = drop(x)
        self.sow("intermediates", "output", x)
        return x


class Encoder(_Stack):
    """Stack of self-attention layers."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length d_model"]:
        """Encodes embedded tokens."""
        return self.run(
            EncoderLayer,
            self.config.num_layers,
            x,
            segments,
            norm="encoder_norm",
            deterministic=deterministic,
        )


class Decoder(_Stack):
    """Stack of causal self-attention and cross-attention layers, and the head."""

    token_embedder: embeddings.TokenEmbedding

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        encoded: Float[Array, "batch kv_length d_model"],
        segments: Int[Array, "batch length"],
        encoded_segments: Int[Array, "batch kv_length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length vocab"]:
        """Logits from embedded decoder inputs and the encoder's output."""
        config, compute = self.config, self.compute
        x = self.run(
            DecoderLayer,
            config.num_decoder_layers,
            x,
            segments,
            encoded,
            encoded_segments,
            norm="decoder_norm",
            deterministic=deterministic,
        )
        if config.tie_embeddings:
            logits = tied_logits(self.token_embedder, x)
        else:
            project = make_logits_dense(config, compute, "logits_dense")
            logits = project(x, out_dtype=jnp.float32)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


class _Layer(nn.Module):
    """Blocks of both kinds of layers, each x + block(norm(x))."""

    config: T5Config
    compute: compute_config.ComputeConfig
    deterministic: bool
    causal: ClassVar[bool]

    def attend_to_self(self, x, shared: _Shared, name: str):
        """x + self-attention(norm(x))."""
        bias = shared.bias
        if bias is None:
            bias = _relative_bias(
                self.config, self.compute, x.shape[1], causal=self.causal
            )
        y = make_norm(self.config, self.compute, f"pre_{name}_layer_norm")(x)
        y = _attention(self.config, self.compute, self.deterministic, name)(
            y,
            y,
            q_segments=shared.segments,
            kv_segments=shared.segments,
            causal=self.causal,
            bias=bias,
        )
        return self.add(x, y)

    def feed_forward(self, x, shared: _Shared):
        """x + mlp(norm(x))."""
        y = make_norm(self.config, self.compute, "pre_mlp_layer_norm")(x)
        y = make_mlp(self.config, self.compute, self.deterministic, "mlp")(
            y, shared.segments
        )
        return self.add(x, y)

    def add(self, x, y):
        """x + dropout(y)."""
        drop = dropout.by_row(self.config.dropout_rate, self.deterministic)
        return nn.with_logical_constraint(x + drop(y), _ACTIVATION_AXES)


class EncoderLayer(_Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    causal = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d_model"], shared: _Shared):
        """One layer, with the signature that `layers.stack` expects."""
        self.sow("intermediates", "input", x)
        x = self.attend_to_self(x, shared, "attention")
        return self.feed_forward(x, shared), None


class DecoderLayer(_Layer):
    """x + causal attention, x + cross-attention, x + mlp, each of norm(x)."""

    causal = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d_model"], shared: _Shared):
        """One layer, with the signature that `layers.stack` expects."""
        self.sow("intermediates", "input", x)
        x = self.attend_to_self(x, shared, "self_attention")
        x = self.attend_to_encoded(x, shared)
        return self.feed_forward(x, shared), None

    def attend_to_encoded(self, x, shared: _Shared):
        """x + cross-attention(norm(x))."""
        config, compute = self.config, self.compute
        assert shared.encoded is not None and shared.encoded_segments is not None
        y = make_norm(config, compute, "pre_cross_attention_layer_norm")(x)
        # No bias: T5 has no notion of distance between decoder and encoder positions.
        y = _attention(
            config, compute, self.deterministic, "encoder_decoder_attention"
        )(
            y,
            shared.encoded,
            q_segments=shared.segments,
            kv_segments=shared.encoded_segments,
        )
        return self.add(x, y)


# Blocks that `t5_decoding` has too. In a module's `setup` they have no name.


def tied_logits(
    token_embedder: embeddings.TokenEmbedding,
    x: Float[Array, "batch length d_model"],
) -> Float[Array, "batch length vocab"]:
    """Logits of T5 1.0, from the embedding table."""
    # Unscaled, the table's deviation of 1 would make logits too large.
    return token_embedder.attend(x * token_embedder.d_model**-0.5)


def make_logits_dense(
    config: T5Config, compute: compute_config.ComputeConfig, name: str | None = None
) -> dense.Dense:
    """The projection to logits of T5 1.1."""
    return dense.Dense(
        config.vocab_size,
        ("embed", "vocab"),
        nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        name=name,
    )


def make_norm(
    config: T5Config, compute: compute_config.ComputeConfig, name: str | None = None
) -> norms.RMSNorm:
    """Root-mean-square norm."""
    return norms.RMSNorm(
        config.norm_epsilon,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        name=name,
    )


def make_mlp(
    config: T5Config,
    compute: compute_config.ComputeConfig,
    deterministic: bool,
    name: str | None = None,
) -> mlp.MLP:
    """Feed-forward block."""
    return mlp.MLP(
        d_ff=config.d_ff,
        activations=config.mlp_activations,
        dropout_rate=config.dropout_rate,
        deterministic=deterministic,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        name=name,
    )


def make_relative_bias(
    config: T5Config,
    compute: compute_config.ComputeConfig,
    *,
    causal: bool,
    name: str | None = None,
) -> relative_bias.RelativePositionBias:
    """The table of relative position biases."""
    return relative_bias.RelativePositionBias(
        num_heads=config.num_heads,
        num_buckets=config.relative_num_buckets,
        max_distance=config.relative_max_distance,
        bidirectional=not causal,
        param_dtype=compute.param_dtype,
        name=name,
    )


def _attention(
    config: T5Config,
    compute: compute_config.ComputeConfig,
    deterministic: bool,
    name: str,
) -> attention.MultiHeadAttention:
    return attention.MultiHeadAttention(
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        dropout_rate=config.dropout_rate,
        deterministic=deterministic,
        block_size=compute.block_size,
        fused=compute.fused_attention,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        name=name,
    )


def _relative_bias(
    config: T5Config,
    compute: compute_config.ComputeConfig,
    length: int,
    *,
    causal: bool,
):
    make = make_relative_bias(config, compute, causal=causal, name="relpos_bias")
    bias = make(length, length)
    if compute.block_size is not None:
        return bias
    # [heads, length, length]; computed once if all layers share it.
    return nn.with_logical_constraint(
        bias.block(0, 0, length, length), ("heads", "length", "kv_length")
    )
