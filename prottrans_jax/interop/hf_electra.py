"""Hugging Face's ELECTRA: configuration and parameters, in both directions.

A checkpoint is a generator or a discriminator: `electra.ElectraEncoder` here. To train
on, `electra.join_params` joins both.
"""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

import numpy as np

from prottrans_jax import types
from prottrans_jax.interop import hf_bert, rules
from prottrans_jax.models import electra

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "embedding_size": 128,
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
    "ElectraForMaskedLM": {"lm_head": True},
    "ElectraForPreTraining": {"replaced_head": True},
}


def config_from_hf(
    attributes: Mapping[str, Any], **overrides: Any
) -> electra.ElectraEncoderConfig:
    """Our configuration from the contents of a `config.json`; see `hf_bert`.

    Raises:
      ValueError: An attribute is unknown, or has a value not supported here.
    """
    fields = hf_bert.fields_from_hf("electra", attributes, _DEFAULTS)
    heads = hf_bert.heads_of(attributes, _HEADS)
    return electra.ElectraEncoderConfig(**{**fields, **heads, **overrides})


def config_to_hf(config: electra.ElectraEncoderConfig) -> dict[str, Any]:
    """Contents of a `config.json` from our configuration; inverse of the above."""
    if config.lm_head and config.replaced_head:
        raise ValueError(
            "Hugging Face has no ELECTRA class with both heads, for tokens (lm_head) "
            "and for replaced tokens (replaced_head). Switch one off."
        )
    architecture = "ElectraModel"
    if config.lm_head:
        architecture = "ElectraForMaskedLM"
    if config.replaced_head:
        architecture = "ElectraForPreTraining"
    return {
        **hf_bert.fields_to_hf("electra", architecture, config),
        "embedding_size": config.d_embed,
    }


def fit_config(
    config: electra.ElectraEncoderConfig, names: Collection[str]
) -> electra.ElectraEncoderConfig:
    """The configuration with the heads for which the checkpoint has arrays."""
    return dataclasses.replace(
        config,
        lm_head="generator_predictions.dense.weight" in names,
        replaced_head="discriminator_predictions.dense.weight" in names,
    )


def params_from_hf(
    checkpoint: Mapping[str, np.ndarray], config: electra.ElectraEncoderConfig
) -> types.Params:
    """Our parameters from a state dict; see `hf_bert.params_from_hf`."""
    shapes = rules.flat_shapes(electra.init_params, config)
    return hf_bert.import_params(
        checkpoint,
        config,
        _table(config),
        shapes,
        "electra",
        head="generator_lm_head",
        decoder="",
    )


def params_to_hf(
    params: types.Params, config: electra.ElectraEncoderConfig
) -> rules.FlatParams:
    """State dict of Hugging Face's model from our parameters (or their gradients)."""
    return hf_bert.export_params(params, _table(config))


def _table(config: electra.ElectraEncoderConfig) -> list[rules.Rule]:
    dense = hf_bert.dense_rule
    return [
        *hf_bert.embedding_rules("electra"),
        *dense("electra.embeddings_project", "encoder/embedding_projection"),
        *hf_bert.layer_rules("electra", config.num_layers),
        *dense("generator_predictions.dense", "lm_head/dense"),
        *hf_bert.norm_rule("generator_predictions.LayerNorm", "lm_head/norm"),
        rules.Rule("generator_lm_head.bias", "lm_head/bias"),
        rules.Rule("generator_lm_head.weight", "lm_head/logits_dense/kernel", True),
        *dense("discriminator_predictions.dense", "replaced_head/dense"),
        *dense(
            "discriminator_predictions.dense_prediction", "replaced_head/logit_dense"
        ),
    ]
