"""Token embeddings."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.layers import dense

# Up to here a product with one-hot rows is cheaper than the gradient of a gather, which
# is a scatter; every vocabulary of the ProtTrans models is smaller.
_ONE_HOT_MAX_VOCAB = 1024


class TokenEmbedding(nn.Module):
    """One table that embeds tokens and, where tied, also gives the logits.

    Attributes:
      vocab_size: Rows of the table.
      d_model: Their width.
      dtype: Type of the embeddings, and of the operands of the logits.
      param_dtype: Type of the table.
      embedding_init: Its initialiser; T5's is a normal of deviation 1.
      axes: Logical names of its axes.
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
        return dense.einsum("blv,vd->bld", one_hot, self.embedding, dtype, dtype)

    def attend(
        self, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        """Products of `x` with every row of the table, float32."""
        return dense.einsum(
            "bld,vd->blv", x, self.embedding, jnp.dtype(self.dtype), jnp.float32
        )
