"""The encoder is found in whatever it was saved with; heads are left out and named."""

import json
import re

import jax
import numpy as np
import pytest

from prottrans_jax.interop import families, huggingface, safetensors, state_dicts
from prottrans_jax.models import albert, bert, electra, t5, transformer_xl, xlnet

SIZES = dict(vocab_size=31, num_layers=2, num_heads=3, d_model=12, head_dim=4, d_ff=14)
CONFIGS = {
    "t5": t5.T5Config(num_decoder_layers=1, **SIZES),
    "bert": bert.BertConfig(max_length=9, pooler=True, **SIZES),
    "albert": albert.AlbertConfig(max_length=9, d_embed=5, **SIZES),
    "electra": electra.ElectraEncoderConfig(
        max_length=9, d_embed=5, replaced_head=True, **SIZES
    ),
    "xlnet": xlnet.XLNetConfig(**SIZES),
    "transformer_xl": transformer_xl.TransformerXLConfig(mem_length=6, **SIZES),
}
FAMILY = pytest.mark.parametrize("family", CONFIGS)


def state_dict(family):
    """Arrays under the names of the family's own class with its head; no two alike."""
    config, module = CONFIGS[family], families.FAMILIES[family].module
    shapes = jax.eval_shape(lambda: module.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
    return families.FAMILIES[family].table.params_to_hf(params, config)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name] is array for name, array in expected.items())


@FAMILY
def test_names_of_the_class_itself_stay(family):
    arrays = state_dict(family)
    found, left_out = state_dicts.of_model(arrays, family)
    assert_same(found, arrays)
    assert not left_out


@FAMILY
@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.base_model.model."],
)
def test_a_wrapped_model_is_extracted(family, wrapper):
    arrays = state_dict(family)
    wrapped = {f"{wrapper}{name}": array for name, array in arrays.items()}
    wrapped["criterion.weight"] = np.ones(3, "f4")
    found, left_out = state_dicts.of_model(wrapped, family)
    assert_same(found, arrays)
    assert left_out == ["criterion.weight"]


@FAMILY
@pytest.mark.parametrize("wrapper", ["", "encoder.", "model.plm.", "bert.", "protein."])
def test_an_encoder_inside_another_module_is_extracted(family, wrapper):
    base = {"t5": "", "transformer_xl": "transformer.", "xlnet": "transformer."}
    base = base.get(family, f"{family}.")
    arrays = {
        name: array for name, array in state_dict(family).items() if name[:4] != "crit"
    }
    expected = {name: x for name, x in arrays.items() if name.startswith(base)}
    bare = {wrapper + name.removeprefix(base): x for name, x in expected.items()}
    bare["classifier.weight"] = bare["head.0.weight"] = np.ones(3, "f4")
    found, left_out = state_dicts.of_model(bare, family)
    assert_same(found, expected)
    assert sorted(left_out) == ["classifier.weight", "head.0.weight"]


def test_compiled_and_sharded_parts_of_a_model_are_extracted():
    arrays = state_dict("bert")
    inside = {
        name.replace(
            "encoder.layer.", "encoder._fsdp_wrapped_module.layer._orig_mod."
        ): x
        for name, x in arrays.items()
    }
    found, _ = state_dicts.of_model(inside, "bert")
    assert_same(found, arrays)


@pytest.mark.parametrize(
    ("family", "heads"),
    [
        ("t5", ["classifier.weight", "classifier.bias"]),
        (
            "t5",
            ["classification_head.dense.weight", "classification_head.out_proj.bias"],
        ),
        ("t5", ["encoder.classifier.weight"]),
        ("xlnet", ["classifier.weight"]),
        ("xlnet", ["sequence_summary.summary.weight", "logits_proj.weight"]),
        ("bert", ["cls.species.weight", "bert.classifier.weight", "qa_outputs.bias"]),
        ("albert", ["classifier.weight"]),
        ("electra", ["classifier.dense.weight", "classifier.out_proj.weight"]),
    ],
)
def test_heads_of_downstream_tasks_are_left_out_and_named(
    tmp_path, family, heads, caplog
):
    arrays = state_dict(family)
    table = families.FAMILIES[family].table
    attributes = table.config_to_hf(CONFIGS[family])
    attributes["architectures"] = [f"{family}ForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    saved = {f"transformer.{name}": x for name, x in arrays.items()}
    if family != "t5":
        saved = dict(arrays)
    saved |= {name: np.ones((3, 2), "f4") for name in heads}
    safetensors.save(tmp_path / "model.safetensors", saved)
    with caplog.at_level("WARNING", logger="absl"):
        found = huggingface.read(tmp_path)
    assert sorted(found.left_out) == sorted(heads)
    assert all(name in caplog.text for name in heads)
    again = table.params_to_hf(found.params, found.config)
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[name], x) for name, x in arrays.items())


def test_a_t5_encoder_saved_as_a_bare_stack_is_extracted():
    arrays = state_dict("t5")
    bare = {
        name.removeprefix("encoder."): x
        for name, x in arrays.items()
        if name.startswith("encoder.")
    }
    bare["embed_tokens.weight"] = arrays["shared.weight"]
    found, left_out = state_dicts.of_model(bare, "t5")
    assert "encoder.block.1.layer.1.DenseReluDense.wo.weight" in found
    assert "encoder.embed_tokens.weight" in found and not left_out


def test_two_models_in_one_file_are_refused_by_name():
    arrays = state_dict("bert")
    both = {f"{x}.{name}": a for x in ("query", "key") for name, a in arrays.items()}
    with pytest.raises(ValueError, match=r"2 models .* key\.bert\.\*, query\.bert\.\*"):
        state_dicts.of_model(both, "bert")


@pytest.mark.parametrize("part", ["query.lora_A.default", "query.base_layer"])
def test_adapters_that_were_not_merged_are_refused(part):
    arrays = state_dict("bert")
    name = f"bert.encoder.layer.0.attention.self.{part}.weight"
    with pytest.raises(ValueError, match="merge_and_unload") as error:
        state_dicts.of_model({**arrays, name: np.ones((2, 2))}, "bert")
    assert name in str(error.value)


def test_unknown_parameters_inside_the_encoder_are_not_left_out(tmp_path):
    arrays = state_dict("bert")
    for name in (
        "bert.encoder.layer.0.adapter.down.weight",
        "bert.species_embeddings.weight",
    ):
        found, left_out = state_dicts.of_model({**arrays, name: np.ones(2)}, "bert")
        assert name in found and not left_out


def write_folder(folder, arrays, **changes):
    attributes = families.FAMILIES["bert"].table.config_to_hf(CONFIGS["bert"])
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**attributes, **changes}))
    safetensors.save(folder / "model.safetensors", arrays)
    return folder


@pytest.mark.parametrize(
    ("changes", "counts", "remedy"),
    [
        ({"hidden_size": 15}, r"41 of another shape, 0 .* 0 ", "the model's conf"),
        ({"num_hidden_layers": 3}, "0 of another shape, 16 .* 0 ", "complete"),
        ({"num_hidden_layers": 1}, "0 of another shape, 0 .* 16 ", "num_layers"),
    ],
)
def test_a_mismatch_is_five_lines_a_count_and_a_remedy(
    tmp_path, changes, counts, remedy
):
    folder = write_folder(tmp_path / "m", state_dict("bert"), **changes)
    with pytest.raises(ValueError, match="Parameters do not match") as error:
        huggingface.read(folder)
    first, *lines, last = str(error.value).splitlines()
    assert 1 <= len(lines) <= 5 and all(x.lstrip()[0] in "-+!" for x in lines)
    assert str(folder) in first
    assert re.search(counts, last) and remedy in last


def test_lines_that_differ_by_layer_alone_are_printed_once(tmp_path):
    arrays = state_dict("bert")
    wrong = {
        name: x[:-1] if name.endswith("intermediate.dense.bias") else x
        for name, x in arrays.items()
    }
    with pytest.raises(ValueError, match="2 in all: 2 of another shape") as error:
        huggingface.read(write_folder(tmp_path / "m", wrong))
    assert str(error.value).count("intermediate.dense.bias") == 1


def test_a_state_dict_inside_a_training_checkpoint_is_extracted(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = state_dict("bert")
    folder = write_folder(tmp_path / "m", arrays)
    (folder / "model.safetensors").unlink()
    state = {f"model.{name}": torch.tensor(x) for name, x in arrays.items()}
    content = {"epoch": 3, "state_dict": state}
    torch.save(content, folder / "pytorch_model.bin")
    found = huggingface.read(folder)
    again = families.FAMILIES["bert"].table.params_to_hf(found.params, found.config)
    assert all(np.array_equal(again[name], x) for name, x in arrays.items())


def test_decoder_in_the_file_is_read_despite_is_encoder_decoder_false(tmp_path):
    arrays = state_dict("t5")
    attributes = families.FAMILIES["t5"].table.config_to_hf(CONFIGS["t5"])
    attributes["is_encoder_decoder"] = False
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    safetensors.save(tmp_path / "model.safetensors", arrays)
    found = huggingface.read(tmp_path)
    assert found.config.num_decoder_layers == 1
    again = families.FAMILIES["t5"].table.params_to_hf(found.params, found.config)
    assert all(np.array_equal(again[name], x) for name, x in arrays.items())
