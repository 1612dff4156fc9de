"""How a model is computed, apart from what it is: one class for all families."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from prottrans_jax.config import setting_types

ATTENTION = ("plain", "blockwise")
# Arrays that a policy saves of each layer for the backward pass, by `checkpoint_name`,
# besides the layer's input. No policy saves the [batch, heads, length, length] scores.
_QKV = ("query", "key", "value")
SAVED_NAMES = {
    # Results as narrow as d_model or the heads. Only the scores, the wide hidden layer
    # of the MLP and elementwise operations are recomputed.
    "save_attention": (*_QKV, "attention_context", "attention_out"),
    # Results of width d_model only: little more memory than "full".
    "save_outputs": ("attention_out", "mlp_out"),
    # Every projection, in its compute type. (T5X's "minimal" saves the same products in
    # float32, before rounding.)
    "minimal": (*_QKV, "attention_context", "attention_out", "mlp_hidden", "mlp_out"),
}
REMAT_POLICIES = ("none", "full", *sorted(SAVED_NAMES))


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Types, attention and loops of a model; may change when a run resumes.

    The architecture is in the family's configuration, such as `models.t5.T5Config`.

    Attributes:
      dtype: Type of activations and products ("bfloat16" or "float32").
      param_dtype: Type of the parameters.
      attention: "plain", or "blockwise", whose memory is linear in the length (in
        XLNet and Transformer-XL except for the mask).
      attention_block_size: Queries and keys per block of blockwise attention; XLNet
        and Transformer-XL take some queries against all keys, about as many scores.
      fused_attention: Whether attention uses a fused GPU kernel, for rows of one
        sequence each; `embed.forward`, which makes such rows, switches it on.
      remat_policy: What the backward pass recomputes: "none", "full" (everything but
        the layers' inputs), "save_outputs", "save_attention", "minimal".
      scan_layers: Whether each stack is one scanned layer (compiles faster), with its
        parameters stacked. A run resumes only with the value that it started with.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attention: str = "plain"
    attention_block_size: int = 512
    fused_attention: bool = False
    remat_policy: str = "none"
    scan_layers: bool = True

    def __post_init__(self):
        # gin binds strings; as numpy dtypes, equal settings compare and hash as equal.
        setting_types.replace_fields(
            self, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
        )
        name = type(self).__name__
        setting_types.check_range(
            f"{name}.attention_block_size", self.attention_block_size, 1
        )
        setting_types.check_choice(f"{name}.attention", self.attention, ATTENTION)
        setting_types.check_choice(
            f"{name}.remat_policy", self.remat_policy, REMAT_POLICIES
        )

    @property
    def block_size(self) -> int | None:
        """Block size of blockwise attention; None for plain attention."""
        return self.attention_block_size if self.attention == "blockwise" else None

    def refuse_fused_attention(self, reason: str) -> None:
        """Raises ValueError if attention is fused.

        Args:
          reason: What a fused kernel cannot do in the calling model.
        """
        if self.fused_attention:
            raise ValueError(
                f"ComputeConfig.fused_attention=True: {reason}. Leave it False; "
                "embedding switches it on where it is exact."
            )


DEFAULT = ComputeConfig()
