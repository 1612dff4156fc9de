"""Attention with logical axes: dot-product attention and T5's multi-head attention."""

import functools

from flax import linen as nn
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prottrans_jax.kernels import softmax_attention
from prottrans_jax.layers import dense

Bias = softmax_attention.Bias


def _constrain_scores(scores):
    return nn.with_logical_constraint(scores, ("batch", "heads", "length", "kv_length"))


dot_product_attention = functools.partial(
    softmax_attention.attention, constrain_scores=_constrain_scores
)


class MultiHeadAttention(nn.Module):
    """Attention of T5: no biases, unscaled scores.

    Kernels are 2-D, [d_model, heads * head_dim]: `num_heads * head_dim` need not be
    d_model (in ProtT5 it is four times d_model). Dropout on the attention weights uses
    one mask for all queries, as in T5X. That is equivalent to dropout on values, so it
    needs no array of the size of the scores.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    deterministic: bool
    block_size: int | None = None
    fused: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch q_length d_model"],
        context: Float[Array, "batch kv_length d_model"],
        *,
        q_segments: Int[Array, "batch q_length"],
        kv_segments: Int[Array, "batch kv_length"],
        causal: bool = False,
        bias: Bias | None = None,
    ) -> Float[Array, "batch q_length d_model"]:
        """Queries from `x`, keys and values from `context` (`x` for self-attention)."""
        project = functools.partial(
            dense.Dense, dtype=self.dtype, param_dtype=self.param_dtype
        )
        normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

        def scaled_normal(*args):
            # Instead of dividing the scores by sqrt(head_dim).
            return normal(*args) / jnp.sqrt(self.head_dim).astype(self.param_dtype)

        def heads(x, segments, name, kernel_init):
            # [batch, length, d_model] -> [batch, length, heads, head_dim]
            features = self.num_heads * self.head_dim
            axes = "embed", "joined_kv"
            x = project(features, axes, kernel_init, name=name)(x, segments=segments)
            x = ad_checkpoint.checkpoint_name(x, name)
            x = x.reshape(*x.shape[:2], self.num_heads, self.head_dim)
            return nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))

        query = heads(x, q_segments, "query", scaled_normal)
        key = heads(context, kv_segments, "key", normal)
        value = heads(context, kv_segments, "value", normal)
        value = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))(
            value, deterministic=self.deterministic
        )
        out = dot_product_attention(
            query,
            key,
            value,
            q_segments=q_segments,
            kv_segments=kv_segments,
            causal=causal,
            bias=bias,
            block_size=self.block_size,
            fused=self.fused,
        )
        # [batch, length, heads, head_dim] -> [batch, length, heads * head_dim]
        out = out.reshape(*out.shape[:2], -1)
        out = project(x.shape[-1], ("joined_kv", "embed"), normal, name="out")(
            out, segments=q_segments
        )
        return ad_checkpoint.checkpoint_name(out, "attention_out")
