"""What the two families with memories share: Transformer-XL and XLNet.

Both have relative attention, an embedding table that also gives the logits, and a bias
of the logits. The order of norm, residual and dropout stands in the family's file.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prottrans_jax import types
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.layers import embeddings, mlp, norms, relative_attention

ACTIVATION_AXES = ("batch", "length", "embed")
KERNEL_INIT = nn.initializers.normal(stddev=0.02)


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Sizes of both families.

    Attributes:
      vocab_size: Rows of the embedding table.
      num_layers: Number of layers.
      num_heads: Attention heads.
      head_dim: Size of a head; num_heads * head_dim need not be d_model.
      d_model: Width of the residual stream; even.
      d_ff: Width of the MLP's hidden layer.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_model: int
    d_ff: int


class Output(NamedTuple):
    """Output of a call.

    Attributes:
      values: Logits, float32, or the last hidden state. With XLNet's targets, those of
        the query stream.
      memories: For the next call, [layers, batch, at most mem_length, d_model];
        gradients are stopped.
    """

    values: Float[Array, "batch outputs features"]
    memories: Float[Array, "layers batch new_length d_model"]


class MemoryModel(nn.Module):
    """Base class; a family adds its stack in `setup`, and `hidden`."""

    config: Any
    compute: compute_config.ComputeConfig = compute_config.DEFAULT
    has_dot_product_attention: ClassVar[bool] = False
    max_length: ClassVar[None] = None

    def setup(self):
        """Creates the embedding table and the bias of the logits."""
        config, compute = self.config, self.compute
        compute.refuse_fused_attention("relative attention has no fused kernel")
        self.token_embedder = embeddings.TokenEmbedding(
            config.vocab_size,
            config.d_model,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            embedding_init=KERNEL_INIT,
            axes=("small_vocab", "embed"),
        )
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
        self, tokens: Int[Array, "batch length"], *, deterministic: bool, **inputs: Any
    ) -> Output:
        """Logits at every position that `hidden` gives, and new memories.

        Args:
          tokens: Token ids.
          deterministic: Whether dropout is off; if not, pass an rng named "dropout".
          **inputs: Other arguments of `hidden`.
        """
        x, memories = self.hidden(tokens, deterministic=deterministic, **inputs)
        logits = self.token_embedder.attend(x) + self.logits_bias
        logits = nn.with_logical_constraint(logits, ("batch", "length", "small_vocab"))
        return Output(logits, memories)

    def hidden(self, *args: Any, **kwargs: Any) -> Output:
        """The last hidden state and new memories; arguments as in `__call__`."""
        raise NotImplementedError

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch length d_model"]:
        """Representations of all positions.

        Args:
          tokens: Token ids.
          mask: True at real positions, or segment ids (0 is padding) for packed rows.
          deterministic: Whether dropout is off.
        """
        out = self.hidden(
            tokens, segment_ids=mask.astype(jnp.int32), deterministic=deterministic
        )
        return out.values

    def no_memories(self, rows: int) -> Float[Array, "layers batch 0 d_model"]:
        """Memories of length 0, for the first call."""
        shape = (self.config.num_layers, rows, 0, self.config.d_model)
        return jnp.zeros(shape, self.compute.dtype)


def init_params(model: MemoryModel, rng: jax.Array) -> types.Params:
    """Random parameters without boxes."""
    # Two rows: with XLNet's bi_data their number is even.
    tokens = jnp.zeros((2, 1), jnp.int32)
    method = type(model).__call__ if model.config.lm_head else type(model).hidden
    variables: Any = model.init(rng, tokens, deterministic=True, method=method)
    return nn.unbox(variables["params"])


class MemoryLayer(nn.Module):
    """Base class of the layers, with the blocks that they are made of."""

    config: Any
    compute: compute_config.ComputeConfig
    deterministic: bool

    def norm(self, name: str) -> norms.LayerNorm:
        """Layer norm."""
        return norms.LayerNorm(
            self.config.norm_epsilon,
            dtype=self.compute.dtype,
            param_dtype=self.compute.param_dtype,
            name=name,
        )

    def attention(
        self, dropout_rate: float, *, token_types: bool = False
    ) -> relative_attention.RelativeAttention:
        """Relative attention; `dropout_rate` is that of the attention weights."""
        return relative_attention.RelativeAttention(
            num_heads=self.config.num_heads,
            head_dim=self.config.head_dim,
            dropout_rate=dropout_rate,
            deterministic=self.deterministic,
            token_types=token_types,
            kernel_init=KERNEL_INIT,
            block_size=self.compute.block_size,
            dtype=self.compute.dtype,
            param_dtype=self.compute.param_dtype,
            name="attention",
        )

    def mlp(self, activation: str) -> mlp.MLP:
        """MLP with biases."""
        return mlp.MLP(
            d_ff=self.config.d_ff,
            activations=(activation,),
            dropout_rate=self.config.dropout_rate,
            deterministic=self.deterministic,
            dtype=self.compute.dtype,
            param_dtype=self.compute.param_dtype,
            use_bias=True,
            kernel_init=KERNEL_INIT,
            name="mlp",
        )
