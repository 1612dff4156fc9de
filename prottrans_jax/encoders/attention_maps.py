"""Attention weights of an encoder, for inspection; T5, BERT, ALBERT and ELECTRA.

The models do not return them. They are recomputed from captured queries and keys, one
protein at a time, as [layers, heads, length, length] is large.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax import types
from prottrans_jax.kernels import distance_bias, products
from prottrans_jax.layers import relative_bias


def attention_maps(
    module: nn.Module, params: types.Params, tokens: Int[Array, " length"]
) -> Float[Array, "layers heads length length"]:
    """Attention weights of one protein for every layer and head; rows sum to 1.

    Args:
      module: The encoder's module, with layers not stacked.
      params: Its parameters.
      tokens: Token ids of one protein, including special tokens, without padding.

    Raises:
      ValueError: The family is not supported (XLNet, Transformer-XL).
    """
    config = module.config
    captured: dict[str, list[jax.Array]] = {"query": [], "key": []}
    biases: list[distance_bias.DistanceBias] = []

    def capture(next_function, args, keywords, context):
        output = next_function(*args, **keywords)
        if context.method_name == "__call__":
            if context.module.name in captured:
                captured[context.module.name].append(output)
            elif isinstance(context.module, relative_bias.RelativePositionBias):
                biases.append(output)
        return output

    row = jnp.asarray(tokens)[None]
    with nn.intercept_methods(capture):
        module.apply(
            {"params": params},
            row,
            jnp.ones_like(row),
            deterministic=True,
            method="encode",
        )
    length = row.shape[1]
    shape = (1, length, config.num_heads * config.head_dim)
    queries, keys = captured["query"], captured["key"]
    is_captured = queries and all(x.shape == shape for x in (*queries, *keys))
    if not module.has_dot_product_attention or not is_captured:
        raise ValueError(
            f"{type(config).__name__}: attention maps are supported for T5, BERT, "
            "ALBERT and ELECTRA with scan_layers=False."
        )
    bias: Float[Array, "heads length length"] | float = 0.0
    if biases:
        bias = biases[0].block(0, 0, length, length)
    # T5 includes the scale in its weights.
    scale = 1.0 if biases else 1.0 / math.sqrt(config.head_dim)

    def weights(query, key):
        heads = (length, config.num_heads, config.head_dim)
        q = query.reshape(heads).astype(jnp.float32)
        k = key.reshape(heads).astype(jnp.float32)
        scores = products.einsum("qhd,khd->hqk", q, k, jnp.float32, jnp.float32)
        scores = scale * scores + bias
        return jax.nn.softmax(scores, axis=-1)

    return jnp.stack([weights(q, k) for q, k in zip(queries, keys, strict=True)])
