"""Hugging Face's Transformer-XL: configuration and parameters, in both directions.

transformers 5 has removed the class; its files can still be read and written.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks, rules
from prottrans_jax.layers import relative_attention
from prottrans_jax.models import transformer_xl

# Attributes that do not change the model's output. transformers ignores `adaptive` too:
# `cutoffs` decides.
_IGNORED = frozenset(
    """
    _name_or_path adaptive add_cross_attention architectures bos_token_id
    chunk_size_feed_forward decoder_start_token_id dtype eos_token_id
    gradient_checkpointing id2label init init_range init_std is_decoder
    is_encoder_decoder label2id model_type output_attentions output_hidden_states
    output_past pad_token_id problem_type proj_init_std proj_share_all_but_first
    return_dict task_specific_params tie_projs tokenizer_class torch_dtype
    trainer_compatible transformers_version use_cache
    """.split()
)


def config_from_hf(
    attributes: Mapping[str, Any], **overrides: Any
) -> transformer_xl.TransformerXLConfig:
    """Our configuration from the contents of a `config.json`.

    Missing fields get Hugging Face's defaults.

    Args:
      attributes: The file's contents.
      **overrides: Other values for fields of `TransformerXLConfig`.

    Raises:
      ValueError: An attribute is unknown, or its value is not supported.
    """
    attributes = dict(attributes)
    take = attributes.pop
    if attributes.get("model_type", "transfo-xl") != "transfo-xl":
        raise ValueError(
            f"model_type={attributes['model_type']!r}; only 'transfo-xl' can be read "
            "here."
        )
    d_model = take("d_model", None) or take("hidden_size", 1024)
    # Only one value of each is supported, as there is no adaptive softmax here. The
    # defaults are Hugging Face's.
    for name, default, supported, meaning in (
        ("cutoffs", [20000, 40000, 200000], [], "one softmax, not an adaptive one"),
        ("div_val", 4, 1, "embeddings of one width"),
        ("d_embed", 1024, d_model, "embeddings as wide as the model"),
        ("attn_type", 0, 0, "relative attention"),
        ("sample_softmax", -1, -1, "the full softmax"),
        ("tie_word_embeddings", True, True, "logits from the embedding table"),
    ):
        value = take(name, default)
        if (list(value) if name == "cutoffs" else value) != supported:
            raise ValueError(
                f"{name}={value!r} (Hugging Face's default: {default!r}) is not "
                f"supported; only {supported!r}: {meaning}."
            )
    fields = {
        "vocab_size": take("vocab_size", None) or take("n_token", 267735),
        "num_layers": take("n_layer", None) or take("num_hidden_layers", 18),
        "num_heads": take("n_head", None) or take("num_attention_heads", 16),
        "head_dim": take("d_head", 64),
        "d_model": d_model,
        "d_ff": take("d_inner", 4096),
        "mem_length": take("mem_len", 1600),
        "clamp_length": max(0, take("clamp_len", 1000)),
        "same_length": take("same_length", True),
        "pre_norm": take("pre_lnorm", False),
        "shared_biases": not take("untie_r", True),
        "dropout_rate": take("dropout", 0.1),
        "attention_dropout_rate": take("dropatt", 0.0),
        "norm_epsilon": take("layer_norm_epsilon", 1e-5),
    }
    rules.refuse_unknown(attributes, _IGNORED)
    return transformer_xl.TransformerXLConfig(**{**fields, **overrides})


def config_to_hf(config: transformer_xl.TransformerXLConfig) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above."""
    return {
        "architectures": [
            "TransfoXLLMHeadModel" if config.lm_head else "TransfoXLModel"
        ],
        "model_type": "transfo-xl",
        "vocab_size": config.vocab_size,
        "cutoffs": [],
        "div_val": 1,
        "adaptive": True,
        "tie_projs": [False],
        "attn_type": 0,
        "sample_softmax": -1,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.head_dim,
        "d_model": config.d_model,
        "d_embed": config.d_model,
        "d_inner": config.d_ff,
        "mem_len": config.mem_length,
        "clamp_len": config.clamp_length or -1,
        "same_length": config.same_length,
        "pre_lnorm": config.pre_norm,
        "untie_r": not config.shared_biases,
        "dropout": config.dropout_rate,
        "dropatt": config.attention_dropout_rate,
        "layer_norm_epsilon": config.norm_epsilon,
    }


def fit_config(
    config: transformer_xl.TransformerXLConfig, arrays: Mapping[str, np.ndarray]
) -> transformer_xl.TransformerXLConfig:
    """The configuration with the checkpoint's head, if any, and its frequencies.

    transformers computes with the stored buffer of frequencies, which half precision
    rounds: by up to 2 % among float16's subnormal numbers.
    """
    config = dataclasses.replace(config, lm_head="crit.out_layers.0.bias" in arrays)
    stored = arrays.get(_FREQUENCIES, arrays.get(_FREQUENCIES_BARE))
    if stored is None:
        return config
    stored = np.asarray(stored, np.float32)
    exact = relative_attention.frequencies(config.d_model)
    # Equal to ours up to float32 rounding of the powers.
    if stored.shape == exact.shape and np.allclose(stored, exact, rtol=1e-6, atol=0):
        return config
    return dataclasses.replace(config, frequencies=tuple(stored.tolist()))


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: transformer_xl.TransformerXLConfig
) -> types.Params:
    """Our parameters from a state dict, as stored; layers not stacked."""
    checkpoint = dict(checkpoint)
    # Files of the bare model lack the prefix.
    if _TABLE.removeprefix("transformer.") in checkpoint:
        checkpoint = {f"transformer.{name}": x for name, x in checkpoint.items()}
    tied = "crit.out_layers.0.weight"
    if tied in checkpoint and not np.array_equal(checkpoint[tied], checkpoint[_TABLE]):
        raise ValueError(
            f"{tied} differs from {_TABLE}; only tied tables are supported."
        )
    ignored = {tied, _FREQUENCIES}  # `fit_config` reads these.
    if config.shared_biases:
        # The state dict repeats shared biases in every layer.
        for layer in range(config.num_layers):
            for name in ("r_w_bias", "r_r_bias"):
                ignored.add(f"transformer.layers.{layer}.dec_attn.{name}")
    for layer in range(config.num_layers):
        name = f"transformer.layers.{layer}.dec_attn.qkv_net.weight"
        if name in checkpoint:
            parts = np.split(checkpoint.pop(name), 3)
            checkpoint |= {
                f"{name}{part}": x for part, x in zip(_PARTS, parts, strict=True)
            }
    shapes = rules.flat_shapes(transformer_xl.init_params, config)
    params = rules.to_ours(checkpoint, _table(config), shapes, ignored=ignored)
    return traverse_util.unflatten_dict(params, sep="/")


def params_to_hf(
    params: types.Params, config: transformer_xl.TransformerXLConfig
) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    flat = traverse_util.flatten_dict(layer_stacks.unstack(params), sep="/")
    arrays = rules.to_theirs(flat, _table(config))
    for layer in range(config.num_layers):
        name = f"transformer.layers.{layer}.dec_attn.qkv_net.weight"
        arrays[name] = np.concatenate([arrays.pop(name + part) for part in _PARTS])
    if config.frequencies is not None:
        arrays[_FREQUENCIES] = _as_stored(config, arrays[_TABLE].dtype)
    if config.lm_head:
        return arrays
    return {name.removeprefix("transformer."): x for name, x in arrays.items()}


def _as_stored(
    config: transformer_xl.TransformerXLConfig, dtype: np.dtype
) -> np.ndarray:
    """Frequencies in the parameters' type if that is exact, else in float32."""
    exact = np.asarray(config.frequencies, np.float32)
    stored = exact.astype(dtype)
    return stored if np.array_equal(stored.astype(np.float32), exact) else exact


_TABLE = "transformer.word_emb.emb_layers.0.weight"
_FREQUENCIES_BARE = "pos_emb.inv_freq"
_FREQUENCIES = f"transformer.{_FREQUENCIES_BARE}"
# Hugging Face stores query, key and value in one array; these name its thirds in the
# table.
_PARTS = ("[q]", "[k]", "[v]")
_BIASES = (("r_w_bias", "content_bias"), ("r_r_bias", "position_bias"))


def _table(config: transformer_xl.TransformerXLConfig) -> list[rules.Rule]:
    rule = rules.Rule
    attention = "transformer.layers.{}.dec_attn", "decoder/layers_{}/attention"
    mlp = "transformer.layers.{}.pos_ff", "decoder/layers_{}/mlp"
    layer = []
    for foreign, native in (
        *((f"qkv_net.weight{p}", o) for p, o in zip(_PARTS, _QKV, strict=True)),
        ("r_net.weight", "position"),
        ("o_net.weight", "out"),
    ):
        layer.append(
            rule(f"{attention[0]}.{foreign}", f"{attention[1]}/{native}/kernel", True)
        )
    for block in (attention, mlp):
        for foreign, native in (("weight", "scale"), ("bias", "bias")):
            layer.append(
                rule(
                    f"{block[0]}.layer_norm.{foreign}",
                    f"{block[1]}_layer_norm/{native}",
                )
            )
    for foreign, native in (("CoreNet.0", "wi"), ("CoreNet.3", "wo")):
        layer += [
            rule(f"{mlp[0]}.{foreign}.weight", f"{mlp[1]}/{native}/kernel", True),
            rule(f"{mlp[0]}.{foreign}.bias", f"{mlp[1]}/{native}/bias"),
        ]
    biases = [rule(f"transformer.{x}", f"decoder/{y}") for x, y in _BIASES]
    if not config.shared_biases:
        layer += [
            rule(f"{attention[0]}.{x}", f"{attention[1]}/{y}") for x, y in _BIASES
        ]
        biases = []
    return [
        rule(_TABLE, "token_embedder/embedding"),
        rule("crit.out_layers.0.bias", "logits_bias"),
        *biases,
        *(x.for_layer(index) for index in range(config.num_layers) for x in layer),
    ]


_QKV = ("query", "key", "value")
