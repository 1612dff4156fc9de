"""Every family to Hugging Face's names and back; no torch, no files of others."""

import numpy as np
import pytest

from cases.hf_cases import ARCHITECTURES, SIZES, assert_same, random_params, table
from prottrans_jax.interop import layer_stacks, safetensors

_XLNET = [
    {},
    {"clamp_len": 4, "ff_activation": "relu"},
    {"n_head": 3, "d_head": 10, "mem_len": 9, "layer_norm_eps": 1e-5},
    {"mem_len": 7, "reuse_len": 5},
    {"bi_data": True, "ff_activation": "gelu_new"},
    {"bi_data": True, "clamp_len": 6, "mem_len": 8},
    {"attn_type": "uni", "ff_activation": "silu"},
    {"attn_type": "uni", "mem_len": 4, "same_length": True},
    {"attn_type": "uni", "clamp_len": 5, "mem_len": 6},
    {"n_layer": 3, "n_head": 1, "d_head": 30},
]
_TRANSFORMER_XL = [
    {},
    {"untie_r": False, "pre_lnorm": True},
    {"same_length": False, "clamp_len": -1, "dropatt": 0.2},
]
# Family, attributes besides `SIZES`.
CONFIGS = [
    ("t5", {}),
    ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    *(
        (
            family,
            {
                "hidden_act": "relu",
                "layer_norm_eps": 1e-5,
                "architectures": [architecture],
            },
        )
        for family, architectures in ARCHITECTURES.items()
        for architecture in architectures
    ),
    *(("xlnet", attributes) for attributes in _XLNET),
    *(("transformer_xl", attributes) for attributes in _TRANSFORMER_XL),
]
# Family, attributes, options of `config_from_hf`.
MODELS = [
    *((family, attributes, {}) for family, attributes in CONFIGS),
    *((family, {}, {"lm_head": False}) for family in ("xlnet", "transformer_xl")),
]


@pytest.mark.parametrize(("family", "attributes"), CONFIGS, ids=str)
def test_configuration_is_the_same_after_writing_and_reading(family, attributes):
    config = table(family).config_from_hf(SIZES[family] | attributes)
    written = table(family).config_to_hf(config)
    assert written.items() >= attributes.items()
    assert table(family).config_from_hf(written) == config


@pytest.mark.parametrize(("family", "attributes", "options"), MODELS, ids=str)
def test_parameters_are_the_same_after_writing_and_reading(
    tmp_path, family, attributes, options
):
    config = table(family).config_from_hf(SIZES[family] | attributes, **options)
    params = random_params(family, config)
    for ours in (params, layer_stacks.stack(params)):
        theirs = table(family).params_to_hf(ours, config)
        safetensors.save(tmp_path / "model.safetensors", theirs)
        arrays = safetensors.load(tmp_path / "model.safetensors")
        assert table(family).fit_config(config, arrays) == config
        assert_same(table(family).params_from_hf(arrays, config), params)


# torch stores [outputs, inputs].
@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("t5", "decoder.block.1.layer.1.EncDecAttention.q.weight", (12, 10)),
        ("bert", "bert.encoder.layer.1.intermediate.dense.weight", (7, 6)),
        ("xlnet", "transformer.layer.1.rel_attn.o", (30, 5, 6)),
        ("xlnet", "transformer.mask_emb", (1, 1, 30)),
        ("transformer_xl", "transformer.layers.1.dec_attn.qkv_net.weight", (45, 12)),
    ],
)
def test_arrays_are_written_in_the_layout_of_torch(family, name, shape):
    config = table(family).config_from_hf(SIZES[family])
    theirs = table(family).params_to_hf(random_params(family, config), config)
    assert theirs[name].shape == shape


_OF_BERT = [
    ("position_embedding_type", "relative_key"),
    ("is_decoder", True),
    ("add_cross_attention", True),
    ("pad_token_id", 1),
    ("pruned_heads", {"0": [1]}),
    ("rope_theta", 10000),
    ("hidden_act", "gelu_10"),
    ("model_type", "roberta"),
]


@pytest.mark.parametrize(
    ("family", "attribute", "value"),
    [
        ("t5", "rope_theta", 10000),
        ("t5", "feed_forward_proj", "gated-tanh"),
        *((family, *item) for family in ARCHITECTURES for item in _OF_BERT),
        ("albert", "num_hidden_groups", 2),
        ("albert", "inner_group_num", 2),
        ("albert", "net_structure_type", 1),
        ("xlnet", "rope_theta", 10000),
        ("xlnet", "untie_r", False),
        ("xlnet", "tie_word_embeddings", False),
        ("xlnet", "ff_activation", "mish"),
        ("xlnet", "attn_type", "both"),
        ("xlnet", "model_type", "bert"),
        ("transformer_xl", "rope_theta", 10000),
        ("transformer_xl", "cutoffs", [5]),
        ("transformer_xl", "div_val", 2),
        ("transformer_xl", "d_embed", 6),
        ("transformer_xl", "attn_type", 2),
        ("transformer_xl", "sample_softmax", 10),
        ("transformer_xl", "tie_word_embeddings", False),
        ("transformer_xl", "model_type", "xlnet"),
    ],
    ids=str,
)
def test_attribute_that_is_not_honoured_is_refused_by_name(family, attribute, value):
    with pytest.raises(ValueError, match=attribute) as error:
        table(family).config_from_hf(SIZES[family] | {attribute: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("family", "missing", "ours", "extra"),
    [
        (
            "t5",
            "encoder.final_layer_norm.weight",
            "encoder/encoder_norm/scale (10,)",
            "encoder.block.7.layer.0.layer_norm.weight",
        ),
        (
            "electra",
            "electra.embeddings.LayerNorm.weight",
            "embeddings/norm/scale (128,)",
            "electra.encoder.layer.7.output.dense.bias",
        ),
    ],
)
def test_missing_and_unknown_arrays_are_listed_together(family, missing, ours, extra):
    config = table(family).config_from_hf(SIZES[family])
    arrays = table(family).params_to_hf(random_params(family, config), config)
    del arrays[missing]
    arrays[extra] = np.ones(6)
    with pytest.raises(ValueError) as error:
        table(family).params_from_hf(arrays, config)
    lines = str(error.value).splitlines()
    assert any(line.startswith(f"  - {ours}") for line in lines)
    assert f"  + {extra} (6,)" in lines


def test_array_of_another_shape_is_listed():
    config = table("t5").config_from_hf(SIZES["t5"])
    arrays = table("t5").params_to_hf(random_params("t5", config), config)
    arrays["shared.weight"] = arrays["shared.weight"][:30]
    with pytest.raises(ValueError) as error:
        table("t5").params_from_hf(arrays, config)
    lines = str(error.value).splitlines()
    assert any(x.startswith("  ! token_embedder/embedding (31, 10)") for x in lines)
