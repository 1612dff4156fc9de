"""Transformer-XL and XLNet, one token at a time.

The modules have the parameters of `transformer_xl.TransformerXL` and `xlnet.XLNet`, by
the same names, with layers not stacked (`ComputeConfig.scan_layers` off). Instead of
memories of the layers' inputs they keep keys and values, which need no projection in
later steps. The results are equal:

  Transformer-XL  as if each token were a call of its own with the memories of those
                  before: a token sees `mem_length` positions before itself (one less
                  if `same_length`). Up to that length, also as one call for the row.
  XLNet           as one call in which the tokens of the prompt have factorisation rank
                  -1 and the others ranks 0, 1, 2 ... from left to right: those of the
                  prompt see each other, later ones only what is before them. The query
                  stream at the next position gives the logits. A model with
                  `attn_type="uni"` is causal in the prompt too.

Rows are padded on the left, so that all are at the same position. Distances are
relative: padding does not change the result.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from prottrans_jax.layers import cached_attention, mlp, norms, relative_attention
from prottrans_jax.models import memory_models, transformer_xl, xlnet


@struct.dataclass
class Cache:
    """What a step hands to the next.

    Attributes:
      length: Number of positions so far, padding included, the same in all rows.
      first: First position of each row that is not padding; constant.
      layers: Keys and values of each layer.
      position_keys: Projected distances of each layer; constant.
    """

    length: Int[Array, ""]
    first: Int[Array, " batch"]
    layers: tuple[cached_attention.KeyValues, ...]
    position_keys: tuple[Float[Array, "distances heads head_dim"], ...]


class MemoryDecoding(memory_models.MemoryModel):
    """Base class; a family adds its stack in `setup`, and `embed` and `visible`."""

    def start(
        self,
        tokens: Int[Array, "batch length"],
        first: Int[Array, " batch"],
        slots: int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Logits of the first token after a prompt, and the cache.

        Args:
          tokens: Prompts of at least one token, padded on the left.
          first: Number of padding tokens of each row.
          slots: Largest number of tokens, those of the prompt and padding included.
        """
        config = self.config
        distance = cached_attention.distances(slots)
        # As in the models' own tables.
        if config.clamp_length:
            distance = np.clip(distance, -config.clamp_length, config.clamp_length)
        encoding = relative_attention.position_encoding(
            distance, config.d_model, getattr(config, "frequencies", None)
        )
        empty = cached_attention.empty(
            len(tokens), config.num_heads, slots, config.head_dim, self.compute.dtype
        )
        cache = Cache(
            length=jnp.int32(0),
            first=first,
            layers=(empty,) * config.num_layers,
            position_keys=self.stack.position_keys(encoding),
        )
        return self._extend(tokens, cache, is_prompt=True)

    def step(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Logits of the next token, and the cache with `tokens` added."""
        return self._extend(tokens[:, None], cache, is_prompt=False)

    @property
    def stack(self) -> "_Stack":
        """The family's stack, under the name that it has in the model."""
        raise NotImplementedError

    def embed(self, tokens: Int[Array, "batch length"]) -> jax.Array:
        """Input of the first layer: one position for each token, and queries."""
        raise NotImplementedError

    def seen(self, start, length: int, *, is_prompt: bool) -> tuple[Any, Any]:
        """First and last slot that each position of `embed` sees."""
        raise NotImplementedError

    def _extend(self, tokens, cache: Cache, *, is_prompt: bool):
        length, slots = tokens.shape[1], cache.layers[0].key.shape[2]
        reach, last = self.seen(cache.length, length, is_prompt=is_prompt)
        bias = cached_attention.visible(slots, cache.first, last, reach)
        x, layers = self.stack(self.embed(tokens), length, bias, cache)
        logits = self.token_embedder.attend(x[:, -1:])[:, 0] + self.logits_bias
        return logits, dataclasses.replace(
            cache, length=cache.length + length, layers=layers
        )


class TransformerXLDecoding(MemoryDecoding):
    """Steps of `transformer_xl.TransformerXL`."""

    config: transformer_xl.TransformerXLConfig

    def setup(self):
        """Declares the modules of the model."""
        super().setup()
        self.decoder = _Stack(self.config, self.compute)

    @property
    def stack(self) -> "_Stack":
        """See the base class."""
        return self.decoder

    def embed(self, tokens: Int[Array, "batch length"]) -> jax.Array:
        """See the base class."""
        return self.token_embedder(tokens) * self.config.d_model**0.5

    def seen(self, start, length: int, *, is_prompt: bool) -> tuple[Any, Any]:
        """See the base class."""
        del is_prompt
        position = start + jnp.arange(length)
        return position - self.config.mem_length + self.config.same_length, position


class XLNetDecoding(MemoryDecoding):
    """Steps of `xlnet.XLNet`: new content, and the query at the next position."""

    config: xlnet.XLNetConfig

    def setup(self):
        """Declares the modules of the model."""
        config, compute = self.config, self.compute
        self.mask_embedding = self.param(
            "mask_embedding",
            memory_models.KERNEL_INIT,
            (config.d_model,),
            compute.param_dtype,
        )
        super().setup()
        self.encoder = _Stack(config, compute)

    @property
    def stack(self) -> "_Stack":
        """See the base class."""
        return self.encoder

    def embed(self, tokens: Int[Array, "batch length"]) -> jax.Array:
        """See the base class."""
        content = self.token_embedder(tokens)
        shape = len(tokens), 1, self.config.d_model
        query = jnp.broadcast_to(jnp.asarray(self.mask_embedding), shape)
        return jnp.concatenate([content, query.astype(content.dtype)], axis=1)

    def seen(self, start, length: int, *, is_prompt: bool) -> tuple[Any, Any]:
        """See the base class."""
        both_ways = is_prompt and self.config.attn_type == "bi"
        content = jnp.full(length, length - 1) if both_ways else jnp.arange(length)
        # The query sees all content, and not its own position.
        last = start + jnp.append(content, length - 1)
        reach = jnp.zeros_like(last)
        if self.config.same_length:
            reach = start + jnp.arange(length + 1) - self.config.mem_length
        return reach, last


class _Stack(nn.Module):
    config: Any
    compute: Any

    def setup(self):
        config, compute = self.config, self.compute
        self.layers = [_Layer(config, compute) for _ in range(config.num_layers)]
        self.shared_biases = getattr(config, "shared_biases", False)
        if self.shared_biases:
            self.biases = relative_attention.global_biases(
                self, config.num_heads, config.head_dim, compute.param_dtype
            )

    def position_keys(self, encoding):
        return tuple(layer.attention.position_keys(encoding) for layer in self.layers)

    def __call__(self, x, length: int, bias, cache: Cache):
        biases = self.biases if self.shared_biases else None
        layers = []
        for layer, cached, position_keys in zip(
            self.layers, cache.layers, cache.position_keys, strict=True
        ):
            x, cached = layer(
                x, length, cached, position_keys, cache.length, bias, biases
            )
            layers.append(cached)
        return x, tuple(layers)


class _Layer(nn.Module):
    """A step of `transformer_xl.Layer` or `xlnet.Layer`."""

    config: Any
    compute: Any

    def setup(self):
        config, compute = self.config, self.compute
        types = {"dtype": compute.dtype, "param_dtype": compute.param_dtype}
        self.attention = cached_attention.CachedRelativeAttention(
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            d_model=config.d_model,
            has_biases=not getattr(config, "shared_biases", False),
            **types,
        )
        self.mlp = mlp.MLP(
            d_ff=config.d_ff,
            activations=(getattr(config, "activation", "relu"),),
            dropout_rate=0.0,
            deterministic=True,
            use_bias=True,
            **types,
        )
        self.attention_layer_norm, self.mlp_layer_norm = (
            norms.LayerNorm(config.norm_epsilon, **types) for _ in range(2)
        )

    def __call__(
        self, x, length: int, cached, position_keys, start, bias, shared_biases
    ):
        pre_norm = getattr(self.config, "pre_norm", False)
        y = self.attention_layer_norm(x) if pre_norm else x
        # Queries are not content: none attends to them.
        cached = cached.write(self.attention.key_values(y[:, :length]), start)
        y = self.attention(y, cached, position_keys, start, bias, shared_biases)
        x = x + y if pre_norm else self.attention_layer_norm(x, y)
        y = self.mlp(self.mlp_layer_norm(x) if pre_norm else x)
        return x + y if pre_norm else self.mlp_layer_norm(x, y), cached
