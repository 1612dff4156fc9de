"""Embeddings of tokens, of positions and of token types."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.kernels import products
from prottrans_jax.layers import dense, norms

# Up to this size a product with one-hot rows is cheaper than a gather, whose gradient
# is a scatter. Every vocabulary of the ProtTrans models is smaller.
_ONE_HOT_MAX_VOCAB = 1024


class TokenEmbedding(nn.Module):
    """Table that embeds tokens and, if tied, also gives the logits.

    Attributes:
      vocab_size: Rows of the table.
      d_model: Width of the table.
      dtype: Type of the embeddings, and of the operands of the logits.
      param_dtype: Type of the table.
      embedding_init: Initialiser of the table; T5 uses a normal of deviation 1.
      axes: Logical names of the table's axes.
    """

    vocab_size: int
    d_model: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    embedding_init: dense.Initializer = nn.initializers.normal(stddev=1.0)
    axes: tuple[str, str] = ("vocab", "embed")

    def setup(self):
        """Creates the table."""
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(self.embedding_init, self.axes),
            (self.vocab_size, self.d_model),
            jnp.dtype(self.param_dtype),
        )

    def __call__(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length d_model"]:
        """Rows of the table, in `dtype`."""
        dtype = jnp.dtype(self.dtype)
        if self.vocab_size > _ONE_HOT_MAX_VOCAB:
            return jnp.take(self.embedding, tokens, axis=0).astype(dtype)
        one_hot = jax.nn.one_hot(tokens, self.vocab_size, dtype=dtype)
        return products.einsum("blv,vd->bld", one_hot, self.embedding, dtype, dtype)

    def attend(
        self, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        """Products of `x` with every row of the table, float32."""
        return products.einsum(
            "bld,vd->blv", x, self.embedding, jnp.dtype(self.dtype), jnp.float32
        )


class LearnedEmbeddings(nn.Module):
    """norm(token + position + token type), all learned (BERT, Devlin et al. 2019).

    Attributes:
      vocab_size: Rows of the table of tokens.
      max_length: Rows of the table of positions.
      num_token_types: Rows of the table of token types.
      d_embed: Width of all three tables.
      dropout_rate: Dropout rate of the result.
      norm_epsilon: Added to the variance in the norm.
      embedding_init: Initialiser of the tables.
      dtype: Type of the result.
      param_dtype: Type of the parameters.
    """

    vocab_size: int
    max_length: int
    num_token_types: int
    d_embed: int
    dropout_rate: float
    norm_epsilon: float
    embedding_init: dense.Initializer
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        """Creates the tables."""
        table = functools.partial(
            TokenEmbedding,
            d_model=self.d_embed,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=self.embedding_init,
        )
        self.token = table(self.vocab_size, axes=("small_vocab", "embed"))
        self.token_type = table(self.num_token_types, axes=("token_types", "embed"))
        self.position = self.param(
            "position",
            nn.with_logical_partitioning(self.embedding_init, ("position", "embed")),
            (self.max_length, self.d_embed),
            jnp.dtype(self.param_dtype),
        )
        self.norm = norms.LayerNorm(
            self.norm_epsilon, dtype=self.dtype, param_dtype=self.param_dtype
        )
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length d_embed"]:
        """Embeds tokens.

        Args:
          tokens: Token ids.
          segments: Protein or pair of each position, from 1; 0 is padding.
          positions: Rows of the position table. None: counted from 0 in each segment.
          token_types: Rows of the table of token types. None: all 0.
          deterministic: Whether dropout is off.
        """
        if positions is None:
            if tokens.shape[1] > self.max_length:
                raise ValueError(
                    f"A row has {tokens.shape[1]} positions, more than max_length="
                    f"{self.max_length}. Cut the row; if it packs shorter segments, "
                    "pass positions."
                )
            positions = positions_in_segments(segments)
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        # jnp.take: a position beyond the table gives NaN, not the row of another.
        position = jnp.take(jnp.asarray(self.position), positions, axis=0)
        x = position.astype(jnp.float32)
        x = x + self.token(tokens).astype(jnp.float32)
        x = x + self.token_type(token_types).astype(jnp.float32)
        x = self.dropout(self.norm(x), deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))

    def attend(
        self, x: Float[Array, "batch length d_embed"]
    ) -> Float[Array, "batch length vocab"]:
        """Products with every token's embedding, float32."""
        return self.token.attend(x)


def positions_in_segments(
    segments: Int[Array, "batch length"],
) -> Int[Array, "batch length"]:
    """Distance of each position from the first of its segment; 0 at padding.

    Segment numbers must increase along a row. Padding at the start is not counted;
    Hugging Face counts it.
    """
    highest = jax.lax.cummax(segments, axis=1)
    before = jnp.pad(highest[:, :-1], ((0, 0), (1, 0)))
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    start = jax.lax.cummax(jnp.where(highest > before, index, 0), axis=1)
    return jnp.where(segments > 0, index - start, 0)
