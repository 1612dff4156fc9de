"""`python -m prottrans_jax.convert` as users run it; training from what it reads."""

import json
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from cases import loader_cases, runs, trainer_cases
from prottrans_jax import partitioning
from prottrans_jax.checkpoints import (
    checkpointing,
    manifests,
    opening,
    run_identity,
    stored_arrays,
    stored_steps,
)
from prottrans_jax.interop import families, huggingface, mesh_tf, t5x
from prottrans_jax.models import (
    albert,
    bert,
    electra,
    t5,
    transformer_xl,
    xlnet,
)
from prottrans_jax.objectives import (
    causal_lm,
    denoising,
    masked_lm,
    permutation_lm,
    replaced_token_detection,
)
from prottrans_jax.optimizers import algorithms

T5 = t5.T5Config(
    vocab_size=31,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    d_model=10,
    d_ff=14,
    dropout_rate=0.0,
)
SIZES = dict(vocab_size=31, num_layers=2, num_heads=3, head_dim=4, d_model=12, d_ff=14)
ELECTRA = electra.ElectraConfig(
    **SIZES,
    generator_num_layers=1,
    generator_num_heads=1,
    generator_head_dim=6,
    generator_d_model=6,
    generator_d_ff=9,
    max_length=11,
)
# Module, model and configuration of each family as it is trained.
TRAINED = {
    "t5": (t5, t5.T5, T5),
    "bert": (bert, bert.Bert, bert.BertConfig(**SIZES, max_length=11)),
    "albert": (
        albert,
        albert.Albert,
        albert.AlbertConfig(**SIZES, max_length=11, d_embed=6),
    ),
    "electra": (electra, electra.Electra, ELECTRA),
    "xlnet": (
        xlnet,
        xlnet.XLNet,
        xlnet.XLNetConfig(**SIZES, mem_length=0, dropout_rate=0.0),
    ),
    "transformer_xl": (
        transformer_xl,
        transformer_xl.TransformerXL,
        transformer_xl.TransformerXLConfig(**SIZES, mem_length=5),
    ),
}
OBJECTIVES = {
    "t5": denoising.Denoising,
    "bert": masked_lm.MaskedLM,
    "albert": masked_lm.MaskedLM,
    "electra": replaced_token_detection.ReplacedTokenDetection,
    "xlnet": permutation_lm.PermutationLM,
    "transformer_xl": causal_lm.CausalLM,
}


def random_params(module, config, dtype=np.float32, seed=3):
    shapes = jax.eval_shape(lambda: module.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * 0.1).astype(dtype), shapes
    )


def assert_same(ours, theirs):
    ours, theirs = stored_arrays.by_name(ours), stored_arrays.by_name(theirs)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name


def convert(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "prottrans_jax.convert", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_conversion_through_all_formats_gives_the_first_files_again(tmp_path):
    params = random_params(t5, T5)
    huggingface.write(tmp_path / "hf", T5, params)
    (tmp_path / "hf" / "special_tokens_map.json").write_bytes(b"{}")
    places = ["hf"]
    for form in ("t5x", "prottrans", "mtf", "hf"):
        source, target = tmp_path / places[-1], tmp_path / f"{form}{len(places)}"
        done = convert(f"--input={source}", f"--output={target}", f"--to={form}")
        assert done.returncode == 0, done.stderr
        assert "num_decoder_layers=3" in done.stdout
        assert str(target) in done.stdout
        places.append(target.name)
    first, last = (tmp_path / x / "model.safetensors" for x in (places[0], places[-1]))
    assert first.read_bytes() == last.read_bytes()


def test_types_companions_and_shards(tmp_path):
    huggingface.write(tmp_path / "in", T5, random_params(t5, T5))
    (tmp_path / "in" / "special_tokens_map.json").write_bytes(b"{}")
    done = convert(
        f"--input=hf:{tmp_path}/in",
        f"--output={tmp_path}/out",
        "--to=hf",
        "--dtype=bfloat16",
        "--max_shard_gb=1e-6",
    )
    assert done.returncode == 0, done.stderr
    assert "Found Hugging Face (model.safetensors)" in done.stdout
    assert "parameters, float32" in done.stdout and "Wrote bfloat16" in done.stdout
    assert (tmp_path / "out" / "special_tokens_map.json").read_bytes() == b"{}"
    checkpoint = huggingface.read(tmp_path / "out")
    assert checkpoint.stored_dtype == ml_dtypes.bfloat16
    assert "shards" in checkpoint.form


def test_mistakes_are_said_in_a_line(tmp_path):
    huggingface.write(tmp_path / "bert", *_bert(tmp_path))
    output = tmp_path / "out"
    for arguments, status, message in (
        (["--to=hf"], 2, "--input and --output must be given"),
        ([f"--input={tmp_path}/absent", "--to=hf"], 1, "no such folder"),
        ([f"--input={tmp_path}/bert", "--to=t5x"], 1, "is for T5 only; this is bert"),
        ([f"--input={tmp_path}", "--to=hf"], 1, "holds no checkpoint: neither"),
    ):
        given = arguments + [f"--output={output}"] * (len(arguments) > 1)
        done = convert(*given)
        assert done.returncode == status
        assert message in done.stderr
        assert not output.exists()
    done = convert(f"--input={tmp_path}/bert", f"--output={tmp_path}", "--to=hf")
    assert done.returncode == 1 and "not empty" in done.stderr


def _bert(tmp_path):
    _, _, config = TRAINED["bert"]
    return config, random_params(bert, config)


def test_values_too_large_for_the_type_are_refused(tmp_path):
    params = random_params(t5, T5)
    params["encoder"]["encoder_norm"]["scale"][3] = 7e4
    with pytest.raises(
        ValueError, match=r"final_layer_norm.*1 values too large.*7e\+04"
    ):
        huggingface.write(tmp_path, T5, params, dtype="float16")
    assert not list(tmp_path.iterdir())
    t5x.write(tmp_path, T5, params, dtype="bfloat16")


class Batches(loader_cases.Rows):
    """Random rows of whatever features an objective reads."""

    vocab_size = 31
    batch_size = 4

    def __init__(self, features):
        super().__init__(num_batches=3)
        self._features = features

    def features(self, index, rng):
        shape = self.batch_size, 7
        features = {}
        for name in self._features:
            if name.endswith("weights"):
                features[name] = np.ones(shape, np.float32)
            elif name.endswith("tokens"):
                features[name] = rng.integers(5, 31, shape, np.int32)
            elif name.endswith("segment_ids"):
                features[name] = np.ones(shape, np.int32)
            elif name.endswith("positions"):
                features[name] = np.tile(np.arange(7, dtype=np.int32), (4, 1))
            elif name == "factorization_ranks":
                ranks = np.full(shape, -1, np.int32)
                ranks[:, 2:4] = [0, 1]
                features[name] = ranks
            else:
                features[name] = np.zeros(shape, np.int32)
        if "order_weights" in features:
            features["order_weights"] *= 0
        return features


def train_one_step(tmp_path, objective, init_from, **changes):
    """With a learning rate of zero: what is saved is what was loaded."""
    arguments = dict(
        model_dir=str(tmp_path / "run"),
        objective=objective,
        train_data=Batches(objective.features),
        optimizer=algorithms.AdamW(learning_rate=0.0, weight_decay=0.0),
        partitioner=partitioning.Partitioner(num_devices=2, scheme="fully_sharded"),
        total_steps=1,
        start_init_from=init_from,
    )
    runs.train(**(arguments | changes))
    return pathlib.Path(arguments["model_dir"])


@pytest.mark.parametrize("family", TRAINED)
def test_training_goes_on_from_a_folder_of_hugging_face(tmp_path, family):
    module, model_class, config = TRAINED[family]
    params = random_params(module, config)
    if family == "electra":
        parts = electra.split_params(params)
        huggingface.write(tmp_path / "generator", config.generator, parts[0])
        huggingface.write(tmp_path / "discriminator", config.discriminator, parts[1])
        init_from = f"hf:{tmp_path}/generator,{tmp_path}/discriminator"
    else:
        huggingface.write(tmp_path / "theirs", config, params)
        init_from = f"{tmp_path}/theirs"  # The folder tells what it is.
    objective = OBJECTIVES[family](model_class(config))
    directory = train_one_step(tmp_path, objective, init_from)
    saved, metadata, _ = stored_steps.read_params(directory)
    assert_same(stored_arrays.nested(saved), params)
    # And the run can be read as a model in its turn, by its own description.
    assert opening.config_of_run(metadata) == (config, "float32")
    found = opening.read(directory, scan_layers=True)
    assert found.family.name == family
    assert_same(found.params, params)


@pytest.mark.parametrize("kind", ["t5x", "mtf"])
def test_training_goes_on_from_t5x_and_mesh_tensorflow(tmp_path, kind):
    params = random_params(t5, T5)
    write = {"t5x": t5x.write, "mtf": mesh_tf.write}[kind]
    write(tmp_path / "theirs", T5, params)
    objective = denoising.Denoising(t5.T5(T5))
    directory = train_one_step(tmp_path, objective, f"{kind}:{tmp_path}/theirs")
    assert_same(stored_arrays.nested(stored_steps.read_params(directory)[0]), params)


def test_training_goes_on_from_what_convert_made(tmp_path):
    params = random_params(t5, T5)
    huggingface.write(tmp_path / "hf", T5, params)
    done = convert(
        f"--input={tmp_path}/hf", f"--output={tmp_path}/ours", "--to=prottrans"
    )
    assert done.returncode == 0, done.stderr
    objective = denoising.Denoising(t5.T5(T5))
    directory = train_one_step(tmp_path, objective, str(tmp_path / "ours"))
    assert_same(stored_arrays.nested(stored_steps.read_params(directory)[0]), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_ff": 16}, "d_ff: 14 -> 16"),
        # The same shapes, other numbers.
        ({"num_heads": 4, "head_dim": 3}, "num_heads: 3 -> 4"),
        ({"mlp_activations": ("silu",)}, "mlp_activations"),
    ],
)
def test_another_model_is_refused_by_its_settings(tmp_path, change, message):
    import dataclasses

    huggingface.write(tmp_path / "theirs", T5, random_params(t5, T5))
    objective = denoising.Denoising(t5.T5(dataclasses.replace(T5, **change)))
    with pytest.raises(stored_arrays.MismatchError, match=message):
        train_one_step(tmp_path, objective, f"hf:{tmp_path}/theirs")


@pytest.mark.parametrize("source", ["hf:{}/absent", "{}/absent", "{}", "mtf:{}"])
def test_nothing_to_start_from_is_an_error_of_checkpoints(tmp_path, source):
    objective = denoising.Denoising(t5.T5(T5))
    (tmp_path / "theirs").mkdir()
    with pytest.raises(manifests.CheckpointError, match="theirs"):
        train_one_step(tmp_path, objective, source.format(tmp_path / "theirs"))


def test_attention_settings_that_shapes_do_not_show_must_agree(tmp_path):
    import dataclasses

    module, model_class, config = TRAINED["xlnet"]
    theirs = dataclasses.replace(config, clamp_length=3)
    huggingface.write(tmp_path / "theirs", theirs, random_params(module, theirs))
    objective = OBJECTIVES["xlnet"](model_class(config))
    with pytest.raises(stored_arrays.MismatchError, match="clamp_length: 3 -> "):
        train_one_step(tmp_path, objective, f"hf:{tmp_path}/theirs")


def test_model_with_a_decoder_does_not_start_from_an_encoder_alone(tmp_path):
    import dataclasses

    encoder = dataclasses.replace(T5, num_decoder_layers=0)
    huggingface.write(tmp_path / "theirs", encoder, random_params(t5, encoder))
    objective = denoising.Denoising(t5.T5(T5))
    with pytest.raises(stored_arrays.MismatchError, match="num_decoder_layers: 0 -> 3"):
        train_one_step(tmp_path, objective, f"hf:{tmp_path}/theirs")


def test_heads_that_the_model_lacks_are_left_out(tmp_path, monkeypatch):
    import dataclasses

    from prottrans_jax.checkpoints import opening

    # Not caplog: another test of this process may have turned absl's logger down.
    said: list[str] = []
    monkeypatch.setattr(
        opening.logging, "warning", lambda text, *args: said.append(text % args)
    )
    _, _, config = TRAINED["bert"]
    whole = dataclasses.replace(config, pooler=True, order_head=True)
    params = random_params(bert, whole)
    huggingface.write(tmp_path / "theirs", whole, params)
    objective = masked_lm.MaskedLM(bert.Bert(config))
    directory = train_one_step(tmp_path, objective, f"hf:{tmp_path}/theirs")
    expected = {k: v for k, v in params.items() if k not in ("pooler", "order_head")}
    assert_same(stored_arrays.nested(stored_steps.read_params(directory)[0]), expected)
    assert any("skipped, not in the model: order_head/bias" in x for x in said)


def test_joint_electra_becomes_two_folders(tmp_path):
    params = random_params(electra, ELECTRA)
    saver = checkpointing.Checkpointer(tmp_path / "run" / "checkpoints")
    metadata = {"identity": run_identity.identity(model=ELECTRA)}
    with saver:
        saver.save(3, {"params": params}, metadata)
    done = convert(f"--input={tmp_path}/run", f"--output={tmp_path}/out", "--to=hf")
    assert done.returncode == 0, done.stderr
    parts = electra.split_params(params)
    for name, expected in zip(("generator", "discriminator"), parts, strict=True):
        found = huggingface.read(tmp_path / "out" / name, scan_layers=True)
        assert found.family is families.FAMILIES["electra"]
        assert_same(found.params, expected)
        attributes = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert attributes["model_type"] == "electra"


@pytest.fixture(scope="module")
def adafactor_run(tmp_path_factory):
    """The model_dir of one step with Adafactor."""
    arguments = trainer_cases.arguments(
        tmp_path_factory.mktemp("adafactor"),
        total_steps=1,
        optimizer=algorithms.Adafactor(learning_rate=0.01),
        eval_data={},
    )
    runs.train(**arguments)
    return arguments["model_dir"]


def test_step_and_moments_of_a_run_go_to_t5x_on_request(adafactor_run, tmp_path):
    out = tmp_path / "t5x"
    done = convert(
        f"--input={adafactor_run}", f"--output={out}", "--to=t5x", "--optimizer_state"
    )
    assert done.returncode == 0, done.stderr
    assert str(out / "checkpoint_1") in done.stdout
    contents = t5x.open_(out)
    assert contents.step == 1
    slots = t5x.read_slots(contents)
    assert slots.keys() == contents.params.keys()
    assert all(values["v"].max() > 0 for values in slots.values())


@pytest.mark.parametrize("options", [["--to=hf"], ["--to=t5x", "--scanned"]])
def test_optimizer_state_is_refused_where_it_cannot_be_stored(
    adafactor_run, tmp_path, options
):
    done = convert(
        f"--input={adafactor_run}",
        f"--output={tmp_path / 'out'}",
        "--optimizer_state",
        *options,
    )
    assert done.returncode == 1
    assert "--optimizer_state is for --to=t5x without --scanned" in done.stderr
    assert not (tmp_path / "out").exists()
