"""Each family is recognised by its configuration, and reads every released one."""

import pytest

from prottrans_jax.interop import families, huggingface


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"model_type": "t5"}, "t5"),
        ({"model_type": "transfo-xl"}, "transformer_xl"),
        ({"architectures": ["T5WithLMHeadModel"]}, "t5"),
        ({"architectures": ["BertForMaskedLM"], "hidden_size": 4}, "bert"),
        ({"architectures": ["AlbertModel"]}, "albert"),
        ({"architectures": ["TransfoXLLMHeadModel"]}, "transformer_xl"),
        ({"d_kv": 4}, "t5"),
        ({"hidden_size": 4, "inner_group_num": 1}, "albert"),
        ({"d_inner": 4, "n_layer": 2}, "xlnet"),
        ({"d_inner": 4, "adaptive": True}, "transformer_xl"),
    ],
)
def test_family_of_a_configuration(attributes, name):
    assert families.family_of(attributes).name == name


def test_a_foreign_family_is_refused_by_name():
    with pytest.raises(ValueError, match="'llama'"):
        families.family_of({"model_type": "llama"})
    with pytest.raises(ValueError, match="Add model_type"):
        families.family_of({"vocab_size": 3})


def test_special_ids_come_from_the_vocabulary():
    assert families.FAMILIES["t5"].suffix_ids == (1,)
    assert families.FAMILIES["bert"].prefix_ids == (2,)
    assert families.FAMILIES["bert"].suffix_ids == (3,)
    assert families.FAMILIES["xlnet"].suffix_ids == (4, 3)  # <sep> <cls>, padded left


@pytest.mark.parametrize("family", families.FAMILIES.values(), ids=lambda x: x.name)
def test_every_family_is_complete(family):
    assert family.config_class is not None and hasattr(family.model_class, "encode")
    for name in ("config_from_hf", "config_to_hf", "params_from_hf", "params_to_hf"):
        assert callable(getattr(family.table, name))
    for index in (*family.prefix_ids, *family.suffix_ids):
        assert 0 <= index < family.vocabulary.size


@pytest.mark.parametrize("name", ["prot_bert_bfd", "prot_bert_bfd_ss3"])
def test_released_configurations_are_read(shared, name):
    folder = shared / "data" / "interop" / "tokenizers" / name
    attributes = huggingface.read_attributes(folder)
    family = families.family_of(attributes)
    config = family.table.config_from_hf(attributes)
    assert (family.name, config.num_layers, config.d_model) == ("bert", 30, 1024)
    assert config.max_length == 40_000 and config.norm_epsilon == 1e-12


@pytest.mark.parametrize("family", families.FAMILIES.values(), ids=lambda x: x.name)
def test_bookkeeping_is_no_setting_but_what_is_unknown_is(family):
    small = {"d_embed": 8, "d_model": 8, "cutoffs": [], "div_val": 1}
    attributes = small if family.name == "transformer_xl" else {}
    kept = {**attributes, "total_flos": 7, "num_beams": 4, "max_length": 20}
    assert family.table.config_from_hf(kept) == family.table.config_from_hf(attributes)
    with pytest.raises(ValueError, match="rope_theta=3"):
        family.table.config_from_hf({**attributes, "rope_theta": 3})
