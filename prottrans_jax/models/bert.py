"""BERT (Devlin et al. 2019) as ProtBert uses it. Encoder with learned positions.

Features:
  - post-norm residual layers, norm(x + block(x)); layer norm with epsilon 1e-12
  - learned positions, counted from 0 in each protein of a packed row; token types
  - biases everywhere; exact GELU; scores divided by sqrt(head_dim)
  - head for masked tokens: dense, GELU, norm, transposed embedding table, bias
  - optional pooler, tanh(dense([CLS])), and a classifier of pairs on top of it

ALBERT and ELECTRA use the blocks of this file.

Departure: dropout on attention weights uses one mask for all queries. That is
equivalent to dropout on values and needs no array of the size of the scores. (ProtBert
has no dropout.)
"""

import dataclasses
import functools
from typing import ClassVar

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax import types
from prottrans_jax.layers import attention, dense, embeddings, mlp, norms, stack
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import choices

_ACTIVATION_AXES = ("batch", "length", "embed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes and switches common to BERT, ALBERT and ELECTRA.

    Attributes:
      vocab_size: Rows of the embedding table; 30 in ProtBert and ProtElectra.
      num_layers: Applications of the encoder layer.
      num_heads: Attention heads.
      head_dim: Size of a head; num_heads * head_dim need not be d_model.
      d_model: Width of the residual stream.
      d_ff: Width of the MLP's hidden layer.
      max_length: Rows of the position table; 40,000 in the released models.
      num_token_types: Rows of the table of token types.
      activation: Activation of the MLPs: "gelu_exact", "gelu" (tanh approximation),
        "relu", ...
      dropout_rate: Dropout rate of the embeddings and of every block's output.
      attention_dropout_rate: Dropout rate of the attention weights.
      norm_epsilon: Added to the variance in layer norm.
      initializer_range: Deviation of the truncated normal of all kernels and tables.
      lm_head: Whether there is a head for masked tokens.
      tie_embeddings: Whether that head uses the embedding table.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    max_length: int
    num_token_types: int = 2
    activation: str = "gelu_exact"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    lm_head: bool = True
    tie_embeddings: bool = True

    def __post_init__(self):
        choices.check(self, activation=tuple(mlp.ACTIVATIONS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """Sizes and switches of a BERT.

    Attributes:
      pooler: Whether there is a dense layer with tanh on [CLS].
      order_head: Whether there is a classifier of pairs on the pooler.
    """

    pooler: bool = False
    order_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_order_head(self)


def check_order_head(config) -> None:
    """Raises ValueError if there is a head for pairs but no pooler."""
    if config.order_head and not config.pooler:
        raise ValueError(
            f"{type(config).__name__}: order_head=True needs pooler=True, whose output "
            "it classifies."
        )


@struct.dataclass
class Outputs:
    """Outputs of a model; None for heads that the model does not have.

    Attributes:
      encoded: Output of the last layer.
      logits: Logits of the token at each position, float32.
      pooled: Pooler output at each position. For a protein or pair, use its [CLS].
      order_logits: Logits of the two classes of a pair, at each position as `pooled`.
        Class 1: the second half comes first (in the original BERT: it is from another
        document).
      replaced_logits: Logit that the token was replaced (ELECTRA), float32.
    """

    encoded: Float[Array, "batch length d_model"]
    logits: Float[Array, "batch length vocab"] | None = None
    pooled: Float[Array, "batch length d_model"] | None = None
    order_logits: Float[Array, "batch length 2"] | None = None
    replaced_logits: Float[Array, "batch length"] | None = None


class EncoderModel(nn.Module):
    """Base class; `setup` of a family makes `embeddings`, `encoder` and the heads."""

    config: EncoderConfig
    compute: compute_config.ComputeConfig = compute_config.DEFAULT
    has_dot_product_attention: ClassVar[bool] = True

    @property
    def max_length(self) -> int:
        """Positions in a row that the model has embeddings for."""
        return self.config.max_length

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segment_ids: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Outputs:
        """Encodes and applies every head that the configuration has.

        Args:
          tokens: Token ids, with [CLS] and [SEP].
          segment_ids: Protein or pair of each position, from 1; 0 is padding. None: one
            protein or pair in each row, and token 0 is padding.
          positions: Rows of the position table, below `max_length`. None: counted from
            0 in each segment.
          token_types: 0, and 1 for the second half of a pair. None: all 0.
          deterministic: Whether dropout is off; if not, pass an rng named "dropout".
        """
        if segment_ids is not None:
            self.compute.refuse_fused_attention("rows with segment ids may be packed")
        else:
            segment_ids = tokens != 0
        encoded = self.encode(
            tokens,
            segment_ids,
            positions=positions,
            token_types=token_types,
            deterministic=deterministic,
        )
        return self.predict(encoded)

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
        *,
        positions: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length d_model"]:
        """Representations of all positions, after the last layer.

        Args:
          tokens: Token ids, with [CLS] and [SEP].
          mask: True at real positions, or segment ids (0 is padding) for packed rows.
          positions: As in `__call__`.
          token_types: As in `__call__`.
          deterministic: Whether dropout is off.
        """
        segments = mask.astype(jnp.int32)
        x = self.embeddings(
            tokens, segments, positions, token_types, deterministic=deterministic
        )
        return self.encoder(x, segments, deterministic=deterministic)

    def predict(self, encoded: Float[Array, "batch length d_model"]) -> Outputs:
        """Applies the heads to the output of `encode`."""
        logits = pooled = order_logits = None
        if self.config.lm_head:
            logits = self.lm_head(encoded, self.embeddings.attend)
        if getattr(self.config, "pooler", False):
            pooled = jnp.tanh(self.pooler(encoded))
        if getattr(self.config, "order_head", False):
            order_logits = self.order_head(pooled, out_dtype=jnp.float32)
        return Outputs(encoded, logits, pooled, order_logits)


class Bert(EncoderModel):
    """BERT with the heads that its configuration names."""

    config: BertConfig

    def setup(self):
        """Creates the blocks."""
        config, compute = self.config, self.compute
        self.embeddings = make_embeddings(config, compute, config.d_model)
        self.encoder = Encoder(config, compute)
        if config.lm_head:
            self.lm_head = MaskedLMHead(config, compute, config.d_model)
        if config.pooler:
            self.pooler = make_dense(config, compute, config.d_model, ("embed", "mlp"))
        if config.order_head:
            self.order_head = make_dense(config, compute, 2, ("embed", "classes"))


def init_params(
    config: BertConfig,
    rng: jax.Array,
    compute: compute_config.ComputeConfig = compute_config.DEFAULT,
) -> types.Params:
    """Random parameters without boxes."""
    return init_model(Bert(config, compute), rng)


def init_model(model: nn.Module, rng: jax.Array) -> types.Params:
    """Random parameters, without boxes, of a model that takes tokens."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(model.init(rng, tokens)["params"])


def forward_flops(config: BertConfig, length: int) -> float:
    """FLOPs of the matrix products of one row: a multiply-add is 2."""
    return encoder_flops(config, length) + head_flops(config, length, config.d_model)


def encoder_flops(config: EncoderConfig, length: int) -> float:
    """FLOPs of the stack of layers."""
    inner = config.num_heads * config.head_dim
    weights = 4 * config.d_model * inner + 2 * config.d_model * config.d_ff
    scores = 2 * length * inner  # query times key, weights times value
    return 2.0 * config.num_layers * length * (weights + scores)


def head_flops(config: EncoderConfig, length: int, d_embed: int) -> float:
    """FLOPs of the heads for tokens and pairs."""
    weights = 0
    if config.lm_head:
        weights += d_embed * (config.d_model + config.vocab_size)
    if getattr(config, "pooler", False):
        weights += config.d_model**2
    if getattr(config, "order_head", False):
        weights += 2 * config.d_model
    return 2.0 * length * weights


class Encoder(nn.Module):
    """Stack of layers.

    Attributes:
      config: Sizes and switches.
      compute: How it is computed.
      project: Whether embeddings are first projected to d_model (ALBERT, ELECTRA).
      share_layers: Whether all layers have the same parameters (ALBERT).
    """

    config: EncoderConfig
    compute: compute_config.ComputeConfig
    project: bool = False
    share_layers: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_embed"],
        segments: Int[Array, "batch length"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length d_model"]:
        """Encodes embedded tokens."""
        config, compute = self.config, self.compute
        if self.project:
            # No name for the embeddings' width: the two axes must have different names.
            axes = (None, "embed")
            x = make_dense(
                config, compute, config.d_model, axes, "embedding_projection"
            )(x, segments=segments)
            x = nn.with_logical_constraint(x, _ACTIVATION_AXES)
        x = stack.apply_layers(
            EncoderLayer,
            x,
            segments,
            num_layers=config.num_layers,
            compute=compute,
            share_parameters=self.share_layers,
            config=config,
            deterministic=deterministic,
        )
        self.sow("intermediates", "output", x)
        return x


class EncoderLayer(nn.Module):
    """x = norm(x + attention(x)), then norm(x + mlp(x))."""

    config: EncoderConfig
    compute: compute_config.ComputeConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"],
    ):
        """One layer, with the signature that `layers.stack` expects."""
        config, compute = self.config, self.compute
        drop = functools.partial(
            nn.Dropout(config.dropout_rate), deterministic=self.deterministic
        )
        self.sow("intermediates", "input", x)
        y = SelfAttention(config, compute, self.deterministic, name="attention")(
            x, segments
        )
        x = make_norm(config, compute, "attention_norm")(x, drop(y))
        x = nn.with_logical_constraint(x, _ACTIVATION_AXES)
        y = mlp.MLP(
            d_ff=config.d_ff,
            activations=(config.activation,),
            dropout_rate=0.0,  # BERT has dropout on the block's output only.
            deterministic=True,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            use_bias=True,
            kernel_init=kernel_init(config),
            name="mlp",
        )(x, segments)
        x = make_norm(config, compute, "mlp_norm")(x, drop(y))
        return nn.with_logical_constraint(x, _ACTIVATION_AXES), None


class SelfAttention(nn.Module):
    """Attention with biases; queries are divided by sqrt(head_dim)."""

    config: EncoderConfig
    compute: compute_config.ComputeConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        segments: Int[Array, "batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """Attends within segments."""
        config, compute = self.config, self.compute

        def heads(name):
            # [batch, length, d_model] -> [batch, length, heads, head_dim]
            features = config.num_heads * config.head_dim
            axes = "embed", "joined_kv"
            y = make_dense(config, compute, features, axes, name)(x, segments=segments)
            y = jax.ad_checkpoint.checkpoint_name(y, name)
            y = y.reshape(*y.shape[:2], config.num_heads, config.head_dim)
            return nn.with_logical_constraint(y, ("batch", "length", "heads", "kv"))

        query, key, value = heads("query"), heads("key"), heads("value")
        value = nn.Dropout(config.attention_dropout_rate, broadcast_dims=(-1,))(
            value, deterministic=self.deterministic
        )
        out = attention.dot_product_attention(
            query * jnp.asarray(config.head_dim**-0.5, query.dtype),
            key,
            value,
            q_segments=segments,
            kv_segments=segments,
            block_size=compute.block_size,
            fused=compute.fused_attention,
        )
        # [batch, length, heads, head_dim] -> [batch, length, heads * head_dim]
        out = out.reshape(*out.shape[:2], -1)
        axes = ("joined_kv", "embed")
        out = make_dense(config, compute, x.shape[-1], axes, "out")(
            out, segments=segments
        )
        return jax.ad_checkpoint.checkpoint_name(out, "attention_out")


class MaskedLMHead(nn.Module):
    """Logits of tokens: dense, activation, norm, product with the table."""

    config: EncoderConfig
    compute: compute_config.ComputeConfig
    d_embed: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d_model"], attend
    ) -> Float[Array, "batch length vocab"]:
        """Logits of encoded positions; `attend` multiplies by the embedding table."""
        config, compute = self.config, self.compute
        x = make_dense(config, compute, self.d_embed, ("embed", "mlp"), "dense")(x)
        x = mlp.ACTIVATIONS[config.activation](x)
        x = make_norm(config, compute, "norm")(x)
        if config.tie_embeddings:
            logits = attend(x)
        else:
            logits = dense.Dense(
                config.vocab_size,
                ("embed", "small_vocab"),
                kernel_init(config),
                dtype=compute.dtype,
                param_dtype=compute.param_dtype,
                name="logits_dense",
            )(x, out_dtype=jnp.float32)
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(
                nn.initializers.zeros_init(), ("small_vocab",)
            ),
            (config.vocab_size,),
            compute.param_dtype,
        )
        return logits + jnp.asarray(bias, jnp.float32)


def kernel_init(config: EncoderConfig) -> dense.Initializer:
    """Initialiser of all kernels and tables: normal truncated at two deviations."""
    # As in TensorFlow: the deviation is not corrected for the truncation.
    return nn.initializers.truncated_normal(
        config.initializer_range, lower=-2.0, upper=2.0
    )


def make_embeddings(
    config: EncoderConfig, compute: compute_config.ComputeConfig, d_embed: int
) -> embeddings.LearnedEmbeddings:
    """Tables of tokens, positions and token types, and the norm of their sum."""
    return embeddings.LearnedEmbeddings(
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        num_token_types=config.num_token_types,
        d_embed=d_embed,
        dropout_rate=config.dropout_rate,
        norm_epsilon=config.norm_epsilon,
        embedding_init=kernel_init(config),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
    )


def make_dense(
    config: EncoderConfig,
    compute: compute_config.ComputeConfig,
    features: int,
    axes: tuple[str | None, str],
    name: str | None = None,
) -> dense.Dense:
    """Projection with bias."""
    return dense.Dense(
        features,
        axes,
        kernel_init(config),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        use_bias=True,
        name=name,
    )


def make_norm(
    config: EncoderConfig,
    compute: compute_config.ComputeConfig,
    name: str | None = None,
) -> norms.LayerNorm:
    """Layer norm."""
    return norms.LayerNorm(
        config.norm_epsilon,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        name=name,
    )
