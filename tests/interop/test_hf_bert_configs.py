"""Configurations and names of BERT's kinship as they come in files; no torch."""

import dataclasses

import jax
import numpy as np
import pytest

from cases import hf_cases
from prottrans_jax.interop import hf_albert, hf_bert, hf_electra
from prottrans_jax.models import bert

# ProtBert's config.json (361 bytes): no model_type, pad_token_id or layer_norm_eps.
PROT_BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "max_position_embeddings": 40000,
    "num_attention_heads": 16,
    "num_hidden_layers": 30,
    "type_vocab_size": 2,
    "vocab_size": 30,
}


def test_prot_bert_with_the_fields_that_its_file_lacks():
    assert hf_bert.config_from_hf(PROT_BERT) == bert.BertConfig(
        vocab_size=30,
        num_layers=30,
        num_heads=16,
        head_dim=64,
        d_model=1024,
        d_ff=4096,
        max_length=40_000,
        activation="gelu_exact",
        norm_epsilon=1e-12,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )


def test_an_empty_file_has_the_defaults_of_each_family():
    sizes = ("d_model", "d_ff", "num_layers", "num_heads", "activation")
    for table, expected in (
        (hf_bert, (768, 3072, 12, 12, "gelu_exact")),
        (hf_albert, (4096, 16384, 12, 64, "gelu")),
        (hf_electra, (256, 1024, 12, 4, "gelu_exact")),
    ):
        config = table.config_from_hf({})
        assert tuple(getattr(config, name) for name in sizes) == expected
    assert hf_albert.config_from_hf({}).d_embed == 128


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"hidden_size=768 .*num_attention_heads=7"):
        hf_bert.config_from_hf({"num_attention_heads": 7})
    config = dataclasses.replace(hf_bert.config_from_hf({}), head_dim=5)
    with pytest.raises(ValueError, match="head_dim=5"):
        hf_bert.config_to_hf(config)


@pytest.mark.parametrize("family", hf_cases.ARCHITECTURES)
def test_files_as_old_as_the_released_ones(family):
    """Names of TensorFlow's norms, buffers, tied arrays twice, no prefix."""
    table = hf_cases.table(family)
    config = table.config_from_hf(
        {**hf_cases.SIZES[family], "architectures": [hf_cases.ARCHITECTURES[family][1]]}
    )
    params = hf_cases.random_params(family, config)
    modern = table.params_to_hf(params, config)
    old = {}
    for name, array in modern.items():
        if name.endswith("LayerNorm.weight"):
            name = name.replace("weight", "gamma")
        if name.endswith("LayerNorm.bias"):
            name = name.replace("bias", "beta")
        # The encoder as saved by itself, not as a part of the model.
        old[name.removeprefix(f"{family}.")] = array
    assert set(old).isdisjoint(x for x in modern if "LayerNorm" in x)
    words = old["embeddings.word_embeddings.weight"]
    old["embeddings.position_ids"] = np.arange(5)[None]
    if family == "electra":
        old["generator_lm_head.weight"] = words
    else:
        head = "cls.predictions" if family == "bert" else "predictions"
        old[f"{head}.decoder.weight"] = words
        old[f"{head}.decoder.bias"] = old[f"{head}.bias"]
    again = table.params_from_hf(old, config)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


@pytest.mark.parametrize("family", hf_cases.ARCHITECTURES)
def test_what_a_file_has_decides_about_heads(family):
    """The released ProtBert names a class without the pooler that it has."""
    table = hf_cases.table(family)
    named = {
        x: table.config_from_hf({**hf_cases.SIZES[family], "architectures": [x]})
        for x in hf_cases.ARCHITECTURES[family]
    }
    for config in named.values():
        names = set(table.params_to_hf(hf_cases.random_params(family, config), config))
        assert (
            table.fit_config(named[hf_cases.ARCHITECTURES[family][1]], names) == config
        )
