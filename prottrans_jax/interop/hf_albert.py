"""Hugging Face's ALBERT: configuration and parameters, in both directions."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import hf_bert, rules
from prottrans_jax.models import albert

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30000,
    "num_hidden_layers": 12,
    "num_attention_heads": 64,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "embedding_size": 128,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
# One shared layer. The attributes from `down_scale_factor` on are unused left-overs in
# the original files.
_FIXED: Mapping[str, Any] = {
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "down_scale_factor": 1,
    "gap_size": 0,
    "layers_to_keep": [],
    "net_structure_type": 0,
    "num_memory_blocks": 0,
}
_HEADS: Mapping[str, Mapping[str, bool]] = {
    "AlbertModel": {"lm_head": False, "pooler": True},
    "AlbertForPreTraining": {"pooler": True, "order_head": True},
    "AlbertForTokenClassification": {"lm_head": False},
    "AlbertForSequenceClassification": {"lm_head": False, "pooler": True},
}


def config_from_hf(
    attributes: Mapping[str, Any], **overrides: Any
) -> albert.AlbertConfig:
    """Our configuration from the contents of a `config.json`; see `hf_bert`.

    Raises:
      ValueError: An attribute is unknown, or has a value not supported here.
    """
    fields = hf_bert.fields_from_hf("albert", attributes, _DEFAULTS, _FIXED)
    heads = hf_bert.heads_of(attributes, _HEADS)
    return albert.AlbertConfig(**{**fields, **heads, **overrides})


def config_to_hf(config: albert.AlbertConfig) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above."""
    if config.order_head:
        architecture = "AlbertForPreTraining"
    else:
        architecture = "AlbertForMaskedLM" if config.lm_head else "AlbertModel"
    return {
        **hf_bert.fields_to_hf("albert", architecture, config),
        "embedding_size": config.d_embed,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    }


def fit_config(
    config: albert.AlbertConfig, names: Collection[str]
) -> albert.AlbertConfig:
    """The configuration with the heads for which the checkpoint has arrays."""
    return dataclasses.replace(
        config,
        lm_head="predictions.dense.weight" in names,
        pooler=not {"albert.pooler.weight", "pooler.weight"}.isdisjoint(names),
        order_head="sop_classifier.classifier.weight" in names,
    )


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: albert.AlbertConfig
) -> types.Params:
    """Our parameters from a state dict; see `hf_bert.params_from_hf`."""
    shapes = rules.flat_shapes(albert.init_params, config)
    return hf_bert.import_params(
        checkpoint, config, _TABLE, shapes, "albert", "predictions"
    )


def params_to_hf(params: types.Params, config: albert.AlbertConfig) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    arrays = hf_bert.export_params(params, _TABLE)
    if config.lm_head and not config.tie_embeddings:
        # transformers ties the two biases only if it ties the tables.
        arrays["predictions.decoder.bias"] = arrays["predictions.bias"]
    return arrays


def _make_table() -> list[rules.Rule]:
    dense, norm = hf_bert.dense_rule, hf_bert.norm_rule
    foreign = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    native = "encoder/layer"
    return [
        *hf_bert.embedding_rules("albert"),
        *dense(
            "albert.encoder.embedding_hidden_mapping_in", "encoder/embedding_projection"
        ),
        *dense(f"{foreign}.attention.query", f"{native}/attention/query"),
        *dense(f"{foreign}.attention.key", f"{native}/attention/key"),
        *dense(f"{foreign}.attention.value", f"{native}/attention/value"),
        *dense(f"{foreign}.attention.dense", f"{native}/attention/out"),
        *norm(f"{foreign}.attention.LayerNorm", f"{native}/attention_norm"),
        *dense(f"{foreign}.ffn", f"{native}/mlp/wi"),
        *dense(f"{foreign}.ffn_output", f"{native}/mlp/wo"),
        *norm(f"{foreign}.full_layer_layer_norm", f"{native}/mlp_norm"),
        *dense("albert.pooler", "pooler"),
        *dense("predictions.dense", "lm_head/dense"),
        *norm("predictions.LayerNorm", "lm_head/norm"),
        rules.Rule("predictions.bias", "lm_head/bias"),
        rules.Rule("predictions.decoder.weight", "lm_head/logits_dense/kernel", True),
        *dense("sop_classifier.classifier", "order_head"),
    ]


_TABLE = _make_table()
