"""Hugging Face's T5: configuration and parameters, in both directions."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks, rules
from prottrans_jax.models import t5

_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),  # gelu_new in transformers: tanh approximation.
    "gated-relu": ("relu", "linear"),
    "gated-silu": ("silu", "linear"),
}
# Attributes that do not change the model's output, that repeat `feed_forward_proj`, or
# that are checked below.
_IGNORED = frozenset(
    """
    _name_or_path add_cross_attention architectures bos_token_id
    chunk_size_feed_forward classifier_dropout decoder_start_token_id dense_act_fn
    dtype eos_token_id gradient_checkpointing id2label initializer_factor is_decoder
    is_encoder_decoder is_gated_act label2id model_type n_positions
    output_attentions output_hidden_states output_past pad_token_id problem_type
    return_dict task_specific_params tokenizer_class torch_dtype
    transformers_version use_cache
    """.split()
)


def config_from_hf(attributes: Mapping[str, Any], **overrides: Any) -> t5.T5Config:
    """Our configuration from the contents of a `config.json`.

    Missing fields get Hugging Face's defaults; older ProtT5 files lack
    `num_decoder_layers`, for example. An encoder-only checkpoint gets
    `num_decoder_layers=0`, whatever the file says.

    Args:
      attributes: The file's contents.
      **overrides: Other values for fields of `T5Config`.

    Raises:
      ValueError: An attribute is unknown, or its value is not supported.
    """
    attributes = dict(attributes)
    take = attributes.pop
    if attributes.get("model_type", "t5") != "t5":
        raise ValueError(
            f"model_type={attributes['model_type']!r}; only 't5' can be read here."
        )
    for name, supported in (("pad_token_id", 0), ("decoder_start_token_id", 0)):
        if attributes.get(name, supported) not in (supported, None):
            raise ValueError(
                f"{name}={attributes[name]}; T5 here pads and starts with {supported}."
            )
    feed_forward = take("feed_forward_proj", "relu")
    if feed_forward not in _ACTIVATIONS:
        raise ValueError(
            f"feed_forward_proj={feed_forward!r} is not supported. Known: "
            f"{', '.join(_ACTIVATIONS)}."
        )
    # transformers 5 always writes tie_word_embeddings=True; its meaning is now in
    # scale_decoder_outputs.
    tied = take("tie_word_embeddings", True)
    tied = take("scale_decoder_outputs", tied)
    num_layers = take("num_layers", 6)
    num_decoder_layers = take("num_decoder_layers", None) or num_layers
    encoder_only = attributes.get("architectures") == ["T5EncoderModel"]
    if encoder_only or attributes.get("is_encoder_decoder") is False:
        num_decoder_layers = 0
    fields = {
        "vocab_size": take("vocab_size", 32128),
        "num_layers": num_layers,
        "num_decoder_layers": num_decoder_layers,
        "num_heads": take("num_heads", 8),
        "head_dim": take("d_kv", 64),
        "d_model": take("d_model", 512),
        "d_ff": take("d_ff", 2048),
        "mlp_activations": _ACTIVATIONS[feed_forward],
        "dropout_rate": take("dropout_rate", 0.1),
        "relative_num_buckets": take("relative_attention_num_buckets", 32),
        "relative_max_distance": take("relative_attention_max_distance", 128),
        "norm_epsilon": take("layer_norm_epsilon", 1e-6),
        "tie_embeddings": tied,
    }
    rules.refuse_unknown(attributes, _IGNORED)
    return t5.T5Config(**{**fields, **overrides})


def config_to_hf(config: t5.T5Config) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above."""
    activations = {native: foreign for foreign, native in _ACTIVATIONS.items()}
    if config.mlp_activations not in activations:
        raise ValueError(
            f"mlp_activations={config.mlp_activations} has no name in Hugging Face's "
            f"T5. Known: {', '.join(map(str, activations))}."
        )
    if not config.share_relative_bias:
        raise ValueError(
            "share_relative_bias=False: Hugging Face's T5 has one relative bias per "
            "stack, this model one per layer."
        )
    decoder = config.num_decoder_layers > 0
    return {
        "architectures": [
            "T5ForConditionalGeneration" if decoder else "T5EncoderModel"
        ],
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        # 0 would be read as absent. `architectures` says that there is no decoder.
        "num_decoder_layers": config.num_decoder_layers or config.num_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "feed_forward_proj": activations[config.mlp_activations],
        "dropout_rate": config.dropout_rate,
        "relative_attention_num_buckets": config.relative_num_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "is_encoder_decoder": decoder,
        "use_cache": decoder,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def fit_config(config: t5.T5Config, names: Collection[str]) -> t5.T5Config:
    """The configuration with as many decoder layers as the checkpoint has arrays for.

    `config.json` is not reliable here: encoder-only files may name the class with both
    stacks, and whole models may be saved with `is_encoder_decoder=false`.
    """
    blocks = {
        int(name.split(".")[2])
        for name in names
        if name.startswith("decoder.block.") and name.split(".")[2].isdecimal()
    }
    if blocks and config.num_decoder_layers:
        return config
    return dataclasses.replace(config, num_decoder_layers=len(blocks))


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: t5.T5Config
) -> types.Params:
    """Our parameters from a state dict, as stored; layers not stacked."""
    checkpoint = dict(checkpoint)
    # Files store tied tables under one or more of these names.
    aliases = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if config.tie_embeddings:
        aliases.append("lm_head.weight")
    for alias in aliases:
        table = checkpoint.pop(alias, None)
        if table is None:
            continue
        if not np.array_equal(checkpoint.setdefault("shared.weight", table), table):
            raise ValueError(
                f"{alias} differs from shared.weight, although the configuration ties "
                "them. Is tie_word_embeddings right?"
            )
    untied = config.num_decoder_layers and not config.tie_embeddings
    if untied and "shared.weight" in checkpoint:
        # transformers 5 also ties the tables of T5 1.1 unless a file has both.
        checkpoint.setdefault("lm_head.weight", checkpoint["shared.weight"])
    shapes = rules.flat_shapes(t5.init_params, config)
    params = rules.to_ours(checkpoint, _table(config), shapes, ignored=_IGNORED_KEYS)
    return traverse_util.unflatten_dict(params, sep="/")


def params_to_hf(params: types.Params, config: t5.T5Config) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    flat = traverse_util.flatten_dict(layer_stacks.unstack(params), sep="/")
    return rules.to_theirs(flat, _table(config))


# Written by transformers 2 and 3 only: cross-attention has no bias.
_IGNORED_KEYS = (
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


def _table(config: t5.T5Config) -> list[rules.Rule]:
    """Names of transformers and ours. torch stores [outputs, inputs]: transposed."""
    rule = rules.Rule
    table = [
        rule("shared.weight", "token_embedder/embedding"),
        rule("encoder.final_layer_norm.weight", "encoder/encoder_norm/scale"),
        rule("decoder.final_layer_norm.weight", "decoder/decoder_norm/scale"),
        rule("lm_head.weight", "decoder/logits_dense/kernel", True),
    ]
    for side, num_layers, blocks in (
        ("encoder", config.num_layers, _ENCODER_BLOCKS),
        ("decoder", config.num_decoder_layers, _DECODER_BLOCKS),
    ):
        table.append(
            rule(
                f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{side}/relpos_bias/rel_embedding",
                True,
            )
        )
        layers = []
        for index, (foreign_block, native_block, norm) in enumerate(blocks):
            foreign = f"{side}.block.{{}}.layer.{index}"
            native = f"{side}/layers_{{}}"
            layers.append(
                rule(f"{foreign}.layer_norm.weight", f"{native}/{norm}/scale")
            )
            names = _MLP if native_block == "mlp" else _ATTENTION
            for foreign_name, native_name in names.items():
                layers.append(
                    rule(
                        f"{foreign}.{foreign_block}.{foreign_name}.weight",
                        f"{native}/{native_block}/{native_name}/kernel",
                        True,
                    )
                )
        table += [x.for_layer(layer) for layer in range(num_layers) for x in layers]
    return table


_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_MLP = {name: name for name in ("wi", "wi_0", "wi_1", "wo")}
_ENCODER_BLOCKS = (
    ("SelfAttention", "attention", "pre_attention_layer_norm"),
    ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
)
_DECODER_BLOCKS = (
    ("SelfAttention", "self_attention", "pre_self_attention_layer_norm"),
    (
        "EncDecAttention",
        "encoder_decoder_attention",
        "pre_cross_attention_layer_norm",
    ),
    ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
)
