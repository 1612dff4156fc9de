"""Hugging Face's BERT: configuration and parameters, in both directions.

Also the parts that ALBERT and ELECTRA share with it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any, TypeVar

from flax import traverse_util
import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import layer_stacks, rules
from prottrans_jax.models import bert

Config = TypeVar("Config", bound=bert.EncoderConfig)

# Hugging Face's name -> ours. Of several names for one value the first is written.
_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Attributes that do not change the model's output.
_IGNORED = frozenset(
    """
    _name_or_path architectures bos_token_id chunk_size_feed_forward
    classifier_dropout classifier_dropout_prob directionality dtype eos_token_id
    finetuning_task generator_size gradient_checkpointing id2label
    is_encoder_decoder label2id model_type num_labels output_attentions
    output_hidden_states output_past pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type problem_type return_dict
    summary_activation summary_last_dropout summary_type summary_use_proj
    task_specific_params tokenizer_class torch_dtype transformers_version use_cache
    """.split()
)
# Attributes that are accepted with this value only.
_FIXED: Mapping[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "torchscript": False,
    "use_bfloat16": False,
}

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
_HEADS: Mapping[str, Mapping[str, bool]] = {
    "BertModel": {"lm_head": False, "pooler": True},
    "BertForPreTraining": {"pooler": True, "order_head": True},
    "BertForTokenClassification": {"lm_head": False},
    "BertForSequenceClassification": {"lm_head": False, "pooler": True},
}


def config_from_hf(attributes: Mapping[str, Any], **overrides: Any) -> bert.BertConfig:
    """Our configuration from the contents of a `config.json`.

    Missing fields get Hugging Face's defaults; ProtBert's file lacks several. The heads
    follow from `architectures`; see also `fit_config`.

    Args:
      attributes: The file's contents.
      **overrides: Other values for fields of `BertConfig`.

    Raises:
      ValueError: An attribute is unknown, or its value is not supported.
    """
    fields = fields_from_hf("bert", attributes, _DEFAULTS)
    heads = heads_of(attributes, _HEADS)
    return bert.BertConfig(**{**fields, **heads, **overrides})


def config_to_hf(config: bert.BertConfig) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above."""
    if config.order_head:
        architecture = "BertForPreTraining"
    else:
        architecture = "BertForMaskedLM" if config.lm_head else "BertModel"
    return fields_to_hf("bert", architecture, config)


def fit_config(config: bert.BertConfig, names: Collection[str]) -> bert.BertConfig:
    """The configuration with the heads for which the checkpoint has arrays."""
    return dataclasses.replace(
        config,
        lm_head="cls.predictions.transform.dense.weight" in names,
        pooler=not {"bert.pooler.dense.weight", "pooler.dense.weight"}.isdisjoint(
            names
        ),
        order_head="cls.seq_relationship.weight" in names,
    )


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: bert.BertConfig
) -> types.Params:
    """Our parameters from a state dict, as stored; layers not stacked.

    Raises:
      ValueError: Parameters are missing, left over, or of another shape.
    """
    shapes = rules.flat_shapes(bert.init_params, config)
    return import_params(
        checkpoint, config, _table(config), shapes, "bert", "cls.predictions"
    )


def params_to_hf(params: types.Params, config: bert.BertConfig) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    arrays = export_params(params, _table(config))
    if config.lm_head and not config.tie_embeddings:
        # transformers ties the two biases only if it ties the tables.
        arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]
    return arrays


def _table(config: bert.BertConfig) -> list[rules.Rule]:
    return [
        *embedding_rules("bert"),
        *layer_rules("bert", config.num_layers),
        *dense_rule("bert.pooler.dense", "pooler"),
        *dense_rule("cls.predictions.transform.dense", "lm_head/dense"),
        *norm_rule("cls.predictions.transform.LayerNorm", "lm_head/norm"),
        rules.Rule("cls.predictions.bias", "lm_head/bias"),
        rules.Rule(
            "cls.predictions.decoder.weight", "lm_head/logits_dense/kernel", True
        ),
        *dense_rule("cls.seq_relationship", "order_head"),
    ]


# Below: shared by the three families.


def fields_from_hf(
    model_type: str,
    attributes: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fields of our configuration from a `config.json` of BERT, ALBERT or ELECTRA.

    Args:
      model_type: Expected `model_type` of the file.
      attributes: The file's contents.
      defaults: Values of attributes that the file may lack.
      fixed: Further attributes that are accepted with this value only.

    Raises:
      ValueError: An attribute is unknown, or its value is not supported.
    """
    stored_type = attributes.get("model_type", model_type)
    if stored_type != model_type:
        raise ValueError(
            f"model_type={stored_type!r}; only {model_type!r} can be read here."
        )
    for name, supported in {**_FIXED, **(fixed or {})}.items():
        value = attributes.get(name)
        if value is not None and value != supported:
            raise ValueError(
                f"{name}={value!r} is not supported for {model_type}, only "
                f"{supported!r}."
            )
    supported_names = {*_IGNORED, *_FIXED, *(fixed or {}), *defaults}
    rules.refuse_unknown(attributes, supported_names)
    values = {name: attributes.get(name, value) for name, value in defaults.items()}
    if values["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act={values['hidden_act']!r} is not supported. Known: "
            f"{', '.join(_ACTIVATIONS)}."
        )
    d_model, num_heads = values["hidden_size"], values["num_attention_heads"]
    if d_model % num_heads:
        raise ValueError(
            f"hidden_size={d_model} is not a multiple of "
            f"num_attention_heads={num_heads}."
        )
    fields = {native: values[foreign] for native, foreign in _FIELDS.items()}
    if "embedding_size" in values:
        fields["d_embed"] = values["embedding_size"]
    fields["head_dim"] = d_model // num_heads
    fields["activation"] = _ACTIVATIONS[values["hidden_act"]]
    return fields


_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "max_length": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
}


def fields_to_hf(
    model_type: str, architecture: str, config: bert.EncoderConfig
) -> dict[str, Any]:
    """Attributes of a `config.json` that the families share."""
    if config.num_heads * config.head_dim != config.d_model:
        raise ValueError(
            f"num_heads={config.num_heads} times head_dim={config.head_dim} is not "
            f"d_model={config.d_model}; Hugging Face's {model_type} has no attribute "
            "for that."
        )
    names: dict[str, str] = {}
    for foreign, native in _ACTIVATIONS.items():
        names.setdefault(native, foreign)
    if config.activation not in names:
        raise ValueError(
            f"activation={config.activation!r} has no name in Hugging Face's "
            f"{model_type}. Known: {', '.join(names)}."
        )
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": names[config.activation],
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        **{foreign: getattr(config, native) for native, foreign in _FIELDS.items()},
    }


def heads_of(
    attributes: Mapping[str, Any], heads: Mapping[str, Mapping[str, bool]]
) -> dict[str, bool]:
    """Switches of the class that a `config.json` names; {} if the class is unknown."""
    for architecture in attributes.get("architectures") or ():
        if architecture in heads:
            return dict(heads[architecture])
    return {}


def import_params(
    checkpoint: Mapping[str, np.ndarray],
    config: Config,
    table: Sequence[rules.Rule],
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str,
    head: str,
    decoder: str = ".decoder",
) -> types.Params:
    """Our parameters from a state dict; the common part of `params_from_hf`.

    Args:
      checkpoint: Hugging Face's arrays by name.
      config: Configuration of the model.
      table: Rules of the family.
      shapes: Expected shapes by our name.
      prefix: Begins Hugging Face's names of the encoder, unless it was saved by itself.
      head: Begins Hugging Face's names of the head for masked tokens.
      decoder: Follows `head` in the names of the head's own table and second bias. If
        these are tied, a file may have them or not.
    """
    table_names = {rule.foreign for rule in table}
    arrays = {}
    for name, array in checkpoint.items():
        name = _modern_name(name, table_names, prefix)
        if name.endswith(("embeddings.position_ids", "embeddings.token_type_ids")):
            _check_buffer(name, array)
            continue
        arrays[name] = array
    own_table, second_bias = f"{head}{decoder}.weight", f"{head}{decoder}.bias"
    if decoder and second_bias in arrays:
        # If a file has both biases, transformers adds this one to the logits.
        arrays[f"{head}.bias"] = arrays.pop(second_bias)
    if config.tie_embeddings:
        arrays.pop(own_table, None)
    elif config.lm_head and own_table not in arrays:
        # transformers does the same if a file is untied but has one table.
        arrays[own_table] = arrays[f"{prefix}.embeddings.word_embeddings.weight"]
    params = rules.to_ours(arrays, table, shapes)
    return traverse_util.unflatten_dict(params, sep="/")


def _check_buffer(name: str, array: np.ndarray) -> None:
    """Refuses buffers of versions 3 and 4 with values other than the defaults."""
    counts = np.arange(array.size) if name.endswith("position_ids") else 0
    if not np.all(array.reshape(-1) == counts):
        raise ValueError(
            f"{name} must be 0, 1, 2, ... for positions and 0 for token types: a "
            "model with other values is not supported."
        )


def _modern_name(name: str, table_names: Collection[str], prefix: str) -> str:
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        if name.endswith(f"LayerNorm.{old}"):
            name = f"{name.removesuffix(old)}{new}"
    with_prefix = f"{prefix}.{name}"
    return with_prefix if with_prefix in table_names else name


def export_params(
    params: types.Params, table: Sequence[rules.Rule]
) -> rules.FlatParams:
    """State dict from our parameters; the common part of `params_to_hf`."""
    flat = traverse_util.flatten_dict(layer_stacks.unstack(params), sep="/")
    return rules.to_theirs(flat, table)


def dense_rule(foreign: str, native: str) -> list[rules.Rule]:
    """Rules of a projection with bias. torch stores [outputs, inputs]: transposed."""
    return [
        rules.Rule(f"{foreign}.weight", f"{native}/kernel", True),
        rules.Rule(f"{foreign}.bias", f"{native}/bias"),
    ]


def norm_rule(foreign: str, native: str) -> list[rules.Rule]:
    """Rules of a layer norm."""
    return [
        rules.Rule(f"{foreign}.weight", f"{native}/scale"),
        rules.Rule(f"{foreign}.bias", f"{native}/bias"),
    ]


def embedding_rules(prefix: str) -> list[rules.Rule]:
    """Rules of the embedding tables and of the norm on their sum."""
    foreign = f"{prefix}.embeddings"
    return [
        rules.Rule(f"{foreign}.word_embeddings.weight", "embeddings/token/embedding"),
        rules.Rule(f"{foreign}.position_embeddings.weight", "embeddings/position"),
        rules.Rule(
            f"{foreign}.token_type_embeddings.weight", "embeddings/token_type/embedding"
        ),
        *norm_rule(f"{foreign}.LayerNorm", "embeddings/norm"),
    ]


def layer_rules(prefix: str, num_layers: int) -> list[rules.Rule]:
    """Rules of the stack of BERT and ELECTRA."""
    make: dict[str, Callable[[str, str], list[rules.Rule]]] = {
        "dense": dense_rule,
        "norm": norm_rule,
    }
    layer = [
        rule
        for kind, foreign, native in _LAYER
        for rule in make[kind](
            f"{prefix}.encoder.layer.{{}}.{foreign}", f"encoder/layers_{{}}/{native}"
        )
    ]
    return [rule.for_layer(index) for index in range(num_layers) for rule in layer]


_LAYER = (
    ("dense", "attention.self.query", "attention/query"),
    ("dense", "attention.self.key", "attention/key"),
    ("dense", "attention.self.value", "attention/value"),
    ("dense", "attention.output.dense", "attention/out"),
    ("norm", "attention.output.LayerNorm", "attention_norm"),
    ("dense", "intermediate.dense", "mlp/wi"),
    ("dense", "output.dense", "mlp/wo"),
    ("norm", "output.LayerNorm", "mlp_norm"),
)
