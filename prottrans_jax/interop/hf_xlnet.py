"""Hugging Face's XLNet: configuration and parameters, in both directions."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks, rules
from prottrans_jax.models import xlnet

_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",  # The tanh approximation.
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Attributes that do not change the model's output here. `use_mems_*` say when memories
# are made; here the caller decides. `summary_*` and `*_n_top` belong to heads that are
# not read.
_IGNORED = frozenset(
    """
    _name_or_path add_cross_attention architectures bos_token_id
    chunk_size_feed_forward decoder_start_token_id dtype end_n_top eos_token_id
    gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder
    label2id mem_len_train model_type output_attentions output_hidden_states output_past
    pad_token_id problem_type return_dict sep_token_id start_n_top summary_activation
    summary_last_dropout summary_type summary_use_proj task_specific_params
    tokenizer_class torch_dtype transformers_version use_cache use_mems use_mems_eval
    use_mems_train
    """.split()
)


def config_from_hf(
    attributes: Mapping[str, Any], **overrides: Any
) -> xlnet.XLNetConfig:
    """Our configuration from the contents of a `config.json`.

    Missing fields get Hugging Face's defaults, except `mem_len`: without it there are
    no memories. Newer releases have a default of 512, but the released ProtXLNet, whose
    file lacks the field, has none.

    Args:
      attributes: The file's contents.
      **overrides: Other values for fields of `XLNetConfig`.

    Raises:
      ValueError: An attribute is unknown, or its value is not supported.
    """
    attributes = dict(attributes)
    take = attributes.pop
    if attributes.get("model_type", "xlnet") != "xlnet":
        raise ValueError(
            f"model_type={attributes['model_type']!r}; only 'xlnet' can be read here."
        )
    for name in ("untie_r", "tie_word_embeddings"):
        if not take(name, True):
            raise ValueError(
                f"{name}=False is not supported: every layer has its own biases, and "
                "the logits come from the embedding table."
            )
    activation = take("ff_activation", "gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"ff_activation={activation!r} is not supported. Known: "
            f"{', '.join(_ACTIVATIONS)}."
        )
    # Old files have n_token, or the attribute names of other families.
    d_model = take("d_model", None) or take("hidden_size", 1024)
    num_heads = take("n_head", None) or take("num_attention_heads", 16)
    fields = {
        "vocab_size": take("vocab_size", None) or take("n_token", 32000),
        "num_layers": take("n_layer", None) or take("num_hidden_layers", 24),
        "num_heads": num_heads,
        "head_dim": take("d_head", None) or d_model // num_heads,
        "d_model": d_model,
        "d_ff": take("d_inner", 4096),
        "mem_length": take("mem_len", None) or 0,
        "reuse_length": take("reuse_len", None) or 0,
        "activation": _ACTIVATIONS[activation],
        "attn_type": take("attn_type", "bi"),
        "bi_data": take("bi_data", False),
        "clamp_length": max(0, take("clamp_len", -1)),
        "same_length": take("same_length", False),
        "dropout_rate": take("dropout", 0.1),
        "norm_epsilon": take("layer_norm_eps", 1e-12),
    }
    rules.refuse_unknown(attributes, _IGNORED)
    return xlnet.XLNetConfig(**{**fields, **overrides})


def config_to_hf(config: xlnet.XLNetConfig) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above.

    Raises:
      ValueError: Hugging Face's XLNet cannot represent the configuration.
    """
    activations = {
        native: foreign for foreign, native in reversed(_ACTIVATIONS.items())
    }
    if config.activation not in activations:
        raise ValueError(
            f"activation={config.activation!r} has no name in Hugging Face's XLNet. "
            f"Known: {', '.join(activations)}."
        )
    if config.num_heads * config.head_dim != config.d_model:
        raise ValueError(
            f"num_heads={config.num_heads} times head_dim={config.head_dim} is not "
            f"d_model={config.d_model}, as Hugging Face's XLNet requires."
        )
    return {
        "architectures": ["XLNetLMHeadModel" if config.lm_head else "XLNetModel"],
        "model_type": "xlnet",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.head_dim,
        "d_model": config.d_model,
        "d_inner": config.d_ff,
        "ff_activation": activations[config.activation],
        "attn_type": config.attn_type,
        "bi_data": config.bi_data,
        "clamp_len": config.clamp_length or -1,
        "same_length": config.same_length,
        "mem_len": config.mem_length or None,
        "reuse_len": config.reuse_length or None,
        # With mem_len=None transformers would keep every state of every call.
        "use_mems_eval": config.mem_length > 0,
        "use_mems_train": False,
        "dropout": config.dropout_rate,
        "layer_norm_eps": config.norm_epsilon,
        "untie_r": True,
    }


def fit_config(config: xlnet.XLNetConfig, names: Collection[str]) -> xlnet.XLNetConfig:
    """The configuration with a head only if the checkpoint has one."""
    return dataclasses.replace(config, lm_head="lm_loss.bias" in names)


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: xlnet.XLNetConfig
) -> types.Params:
    """Our parameters from a state dict, as stored; layers not stacked."""
    # Files of the bare model lack the prefix.
    if "word_embedding.weight" in checkpoint:
        checkpoint = {f"transformer.{name}": x for name, x in checkpoint.items()}
    tied = "lm_loss.weight"
    ignored = {tied}
    if tied in checkpoint and not np.array_equal(
        checkpoint[tied], checkpoint["transformer.word_embedding.weight"]
    ):
        raise ValueError(
            f"{tied} differs from transformer.word_embedding.weight; XLNet ties them."
        )
    shapes = rules.flat_shapes(xlnet.init_params, config)
    params = rules.to_ours(checkpoint, _table(config), shapes, ignored=ignored)
    return traverse_util.unflatten_dict(params, sep="/")


def params_to_hf(params: types.Params, config: xlnet.XLNetConfig) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    flat = traverse_util.flatten_dict(layer_stacks.unstack(params), sep="/")
    arrays = rules.to_theirs(flat, _table(config))
    if config.lm_head:
        return arrays
    return {name.removeprefix("transformer."): x for name, x in arrays.items()}


def _table(config: xlnet.XLNetConfig) -> list[rules.Rule]:
    rule, width = rules.Rule, config.d_model
    heads = (config.num_heads, config.head_dim)
    merged = ((width, *heads), (width, config.num_heads * config.head_dim))
    attention = "transformer.layer.{}.rel_attn", "encoder/layers_{}/attention"
    mlp = "transformer.layer.{}.ff", "encoder/layers_{}/mlp"
    layer = []
    for foreign, native in (
        ("q", "query"),
        ("k", "key"),
        ("v", "value"),
        ("r", "position"),
        ("o", "out"),
    ):
        layer.append(
            rule(
                f"{attention[0]}.{foreign}",
                f"{attention[1]}/{native}/kernel",
                transpose=native == "out",
                reshape=merged,
            )
        )
    for foreign, native in (
        ("r_w_bias", "content_bias"),
        ("r_r_bias", "position_bias"),
        ("r_s_bias", "type_bias"),
        ("seg_embed", "type_embedding"),
    ):
        layer.append(rule(f"{attention[0]}.{foreign}", f"{attention[1]}/{native}"))
    for block in (attention, mlp):
        for foreign, native in (("weight", "scale"), ("bias", "bias")):
            layer.append(
                rule(
                    f"{block[0]}.layer_norm.{foreign}",
                    f"{block[1]}_layer_norm/{native}",
                )
            )
    for foreign, native in (("layer_1", "wi"), ("layer_2", "wo")):
        layer += [
            rule(f"{mlp[0]}.{foreign}.weight", f"{mlp[1]}/{native}/kernel", True),
            rule(f"{mlp[0]}.{foreign}.bias", f"{mlp[1]}/{native}/bias"),
        ]
    return [
        rule("transformer.word_embedding.weight", "token_embedder/embedding"),
        rule(
            "transformer.mask_emb", "mask_embedding", reshape=((1, 1, width), (width,))
        ),
        rule("lm_loss.bias", "logits_bias"),
        *(x.for_layer(index) for index in range(config.num_layers) for x in layer),
    ]
