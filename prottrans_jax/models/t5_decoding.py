"""T5's decoder, one token at a time.

`T5Decoding` has the parameters of `t5.T5`, by the same names, with layers not stacked
(`ComputeConfig.scan_layers` off). Its logits are those of `t5.T5` on the whole target.
"""

import dataclasses

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prottrans_jax.layers import cached_attention, embeddings, relative_bias
from prottrans_jax.layers import compute as compute_config
from prottrans_jax.models import t5


@struct.dataclass
class LayerCache:
    """Keys and values of one layer.

    Attributes:
      own: Of the decoder's positions.
      encoded: Of the encoder's output; constant.
      bias: Relative position bias, if each layer has its own; constant.
    """

    own: cached_attention.KeyValues
    encoded: cached_attention.KeyValues
    bias: relative_bias.Bias | None


@struct.dataclass
class Cache:
    """What a step hands to the next.

    Attributes:
      length: Number of decoder positions so far, the same in all rows.
      layers: Caches of the layers.
      encoded_bias: 0, or `MASKED` at padding of the encoder's input; constant.
      bias: Relative position bias, if all layers share it; constant.
    """

    length: Int[Array, ""]
    layers: tuple[LayerCache, ...]
    encoded_bias: Float[Array, "batch 1 1 kv_length"]
    bias: relative_bias.Bias | None


class T5Decoding(nn.Module):
    """Encoder, then decoder steps."""

    config: t5.T5Config
    compute: compute_config.ComputeConfig

    def setup(self):
        """Declares the modules of `t5.T5`."""
        config, compute = self.config, self.compute
        self.token_embedder = embeddings.TokenEmbedding(
            config.vocab_size,
            config.d_model,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
        )
        self.encoder = t5.Encoder(config, compute)
        self.decoder = _Decoder(config, compute, self.token_embedder)

    def start(
        self, tokens: Int[Array, "batch kv_length"], slots: int
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Logits of the first target, and the cache.

        Args:
          tokens: Tokens of the encoder; 0 is padding.
          slots: Largest number of targets.
        """
        segments = (tokens != 0).astype(jnp.int32)
        encoded = self.encoder(
            self.token_embedder(tokens), segments, deterministic=True
        )
        cache = self.decoder.start(encoded, segments, slots)
        # Token 0 is the first input of the decoder.
        return self.step(jnp.zeros_like(tokens[:, 0]), cache)

    def step(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Logits of the next target, and the cache with `tokens` added."""
        logits, cache = self.decoder(self.token_embedder(tokens[:, None]), cache)
        return logits[:, 0], cache


class _Decoder(nn.Module):
    config: t5.T5Config
    compute: compute_config.ComputeConfig
    token_embedder: embeddings.TokenEmbedding

    def setup(self):
        config, compute = self.config, self.compute
        self.layers = [
            _Layer(config, compute) for _ in range(config.num_decoder_layers)
        ]
        self.decoder_norm = t5.make_norm(config, compute)
        if config.share_relative_bias:
            self.relpos_bias = t5.make_relative_bias(config, compute, causal=True)
        if not config.tie_embeddings:
            self.logits_dense = t5.make_logits_dense(config, compute)

    def start(self, encoded, segments, slots: int) -> Cache:
        """The cache without decoder positions."""
        shared = self.config.share_relative_bias
        return Cache(
            length=jnp.int32(0),
            layers=tuple(layer.start(encoded, slots) for layer in self.layers),
            encoded_bias=cached_attention.hide_padding(segments),
            bias=self.relpos_bias(slots, slots) if shared else None,
        )

    def __call__(self, x, cache: Cache):
        layers = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x, layer_cache = layer(x, layer_cache, cache)
            layers.append(layer_cache)
        x = self.decoder_norm(x)
        if self.config.tie_embeddings:
            logits = t5.tied_logits(self.token_embedder, x)
        else:
            logits = self.logits_dense(x, out_dtype=jnp.float32)
        return logits, dataclasses.replace(
            cache, length=cache.length + 1, layers=tuple(layers)
        )


class _Layer(nn.Module):
    """A step of `t5.DecoderLayer`."""

    config: t5.T5Config
    compute: compute_config.ComputeConfig

    def setup(self):
        config, compute = self.config, self.compute

        def make_attention():
            return cached_attention.CachedAttention(
                num_heads=config.num_heads,
                head_dim=config.head_dim,
                d_model=config.d_model,
                dtype=compute.dtype,
                param_dtype=compute.param_dtype,
            )

        self.pre_self_attention_layer_norm = t5.make_norm(config, compute)
        self.self_attention = make_attention()
        self.pre_cross_attention_layer_norm = t5.make_norm(config, compute)
        self.encoder_decoder_attention = make_attention()
        self.pre_mlp_layer_norm = t5.make_norm(config, compute)
        self.mlp = t5.make_mlp(config, compute, deterministic=True)
        if not config.share_relative_bias:
            self.relpos_bias = t5.make_relative_bias(config, compute, causal=True)

    def start(self, encoded: jax.Array, slots: int) -> LayerCache:
        """Cache without decoder positions."""
        config = self.config
        own = cached_attention.empty(
            len(encoded), config.num_heads, slots, config.head_dim, self.compute.dtype
        )
        shared = config.share_relative_bias
        return LayerCache(
            own=own,
            encoded=self.encoder_decoder_attention.key_values(encoded),
            bias=None if shared else self.relpos_bias(slots, slots),
        )

    def __call__(self, x, cache: LayerCache, shared: Cache):
        y = self.pre_self_attention_layer_norm(x)
        own = cache.own.write(self.self_attention.key_values(y), shared.length)
        slots = own.key.shape[2]
        by_distance = shared.bias if cache.bias is None else cache.bias
        assert by_distance is not None
        bias = by_distance.block(shared.length, 0, 1, slots)[None]
        bias += cached_attention.visible(slots, 0, shared.length[None])
        x = x + self.self_attention(y, own, bias)
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention(y, cache.encoded, shared.encoded_bias)
        x = x + self.mlp(self.pre_mlp_layer_norm(x))
        return x, dataclasses.replace(cache, own=own)
