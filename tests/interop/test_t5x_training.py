"""Our rows, leaves and checkpoints in T5X's own training loop.

Tests of T5X itself run where it is installed; `NEEDS_T5X` says how. Others hold the gin
files to the names that T5X had at the commit of constraints/t5x-git.txt.
"""

import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.config import reading
from prottrans_jax.data.rows import loader
from prottrans_jax.data.seqio import byte_vocabulary, t5x_batches
import prottrans_jax.tasks

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIN = reading.package_folder()
LEAVES = ("t5x/prot_t5_xl.gin", "t5x/sample.gin")
# Parameters of T5X's configurables that the leaves bind, by their full names.
API = json.loads((pathlib.Path(__file__).parent / "t5x_api.json").read_text())
NEEDS_T5X = pytest.mark.skipif(
    importlib.util.find_spec("t5x") is None,
    reason="T5X is not installed: see docs/t5x.md, "
    "pip install -c constraints/t5x.txt -e '.[t5x,test]' and "
    "pip install --no-deps -r constraints/t5x-git.txt",
)


def _statements(leaf, folder):
    """Statements of a leaf and of our files that it includes; nothing is imported."""
    stub = folder / "t5x/configs/runs/pretrain.gin"
    stub.parent.mkdir(parents=True)
    stub.touch()
    reader = reading.Reader([GIN, folder], trust_config=False)
    reader.read_file(leaf)
    return reader.statements


def _full_name(statement):
    """Module and name of the configurable of a binding."""
    root, _, rest = statement.selector.partition(".")
    module = statement.source.imports[root]
    return f"{module.replace('__main__', 't5x.train')}.{rest}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_binds_only_parameters_that_exist(leaf, tmp_path):
    bindings = [s for s in _statements(leaf, tmp_path) if s.parameter]
    assert len(bindings) > 20
    for binding in bindings:
        name = _full_name(binding)
        if name.startswith("prottrans_jax."):
            module, _, function = name.rpartition(".")
            function = getattr(importlib.import_module(module), function)
            parameters = inspect.signature(function).parameters
        else:
            parameters = API[name]
        assert binding.parameter in parameters, binding.where


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_sets_what_t5x_requires(leaf, tmp_path):
    macros = {s.selector for s in _statements(leaf, tmp_path) if not s.parameter}
    # `%gin.REQUIRED` in t5x/configs/runs/pretrain.gin; MODEL_DIR is the user's.
    assert macros >= {"MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS"}
    assert "MODEL" in macros and "MODEL_DIR" not in macros


@pytest.mark.parametrize(
    ("leaf", "ours"),
    [
        ("t5x/prot_t5_xl.gin", "models/prot_t5_xl.gin"),
        ("t5x/sample.gin", "models/prot_t5_tiny.gin"),
    ],
)
def test_leaf_has_the_sizes_of_our_model(leaf, ours, tmp_path):
    names = {
        "num_encoder_layers": "num_layers",
        "emb_dim": "d_model",
        "mlp_dim": "d_ff",
        "logits_via_embedding": "tie_embeddings",
        "dtype": None,  # of ComputeConfig
        "float32_attention_logits": None,
    }

    def config_of(statements):
        return {
            s.parameter: s.value
            for s in statements
            if s.selector.endswith(".T5Config") and s.parameter
        }

    theirs = config_of(_statements(leaf, tmp_path))
    reader = reading.Reader([GIN], trust_config=False)
    reader.read_file(ours)
    renamed = {names.get(name, name): value for name, value in theirs.items()}
    renamed.pop(None)
    fixed_in_t5x = {
        "relative_num_buckets": 32,
        "relative_max_distance": 128,
        "norm_epsilon": 1e-6,
    }
    assert renamed | fixed_in_t5x == config_of(reader.statements)


def test_commits_and_versions_are_exact():
    lines = (ROOT / "constraints/t5x-git.txt").read_text().splitlines()
    sources = [line for line in lines if line and not line.startswith("#")]
    assert len(sources) == 3
    for line in sources:
        assert re.fullmatch(
            r"\w+ @ git\+https://github\.com/[\w/-]+@[0-9a-f]{40}", line
        )
    for line in (ROOT / "constraints/t5x.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


@NEEDS_T5X
def test_recorded_parameters_are_those_of_t5x():
    for name, parameters in API.items():
        module, _, attribute = name.rpartition(".")
        configurable = getattr(importlib.import_module(module), attribute)
        assert list(inspect.signature(configurable).parameters) == parameters, name


@NEEDS_T5X
@pytest.mark.parametrize("pack", [True, False])
def test_t5x_hands_its_step_the_batches_of_our_trainer(pack):
    from t5x import models, partitioning, utils

    lengths = {"inputs": 256, "targets": 256}
    cfg = utils.DatasetConfig(
        "sample_iid_denoise", lengths, "train", 8, shuffle=True, seed=0, pack=pack
    )
    vocabulary = byte_vocabulary.prot_t5()
    model = models.EncoderDecoderModel(None, vocabulary, vocabulary, None)
    utils.verify_matching_vocabs(cfg, model)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    layout = partitioner.get_data_layout(cfg.batch_size)
    # As in t5x.train.train.
    batches = utils.prepare_train_iter(
        t5x_batches.train_batches(
            cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
        ),
        checkpoint_cfg=None,
        partitioner=partitioner,
        data_layout=layout,
    )
    ours = loader.RowLoader(
        "sample_iid_denoise", batch_size=8, feature_lengths=lengths, pack=pack
    )
    for index in range(4):
        expected = ours.batch(index)
        for name, value in next(batches).items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(np.asarray(value), expected[name], name)


def _run_t5x(model_dir, *bindings, leaf="t5x/sample.gin"):
    """`python -m t5x.train` as a finished process."""
    command = [
        *(sys.executable, "-m", "t5x.train", f"--gin_search_paths={GIN}"),
        *(f"--gin_file={leaf}", f'--gin.MODEL_DIR="{model_dir}"'),
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _train(model_dir, *bindings):
    """Trains with the sample's leaf under T5X; returns the loss of each step."""
    done = _run_t5x(model_dir, "train.stats_period = 1", *bindings)
    assert done.returncode == 0, done.stderr[-4000:]
    pattern = r"\[(\d+)\] collection=train .*?\bloss=([\d.]+)"
    return {int(step): float(loss) for step, loss in re.findall(pattern, done.stderr)}


@NEEDS_T5X
@pytest.mark.slow
def test_full_size_leaf_parses_and_asks_for_its_records(tmp_path):
    nowhere = f'DATA_DIR = "{tmp_path}"'
    done = _run_t5x(tmp_path / "run", nowhere, leaf="t5x/prot_t5_xl.gin")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-10:]
    assert "prottrans_jax.prepare" in "\n".join(last) and "bfd" in "\n".join(last)


@pytest.fixture(scope="module")
def t5x_run(tmp_path_factory):
    """Three steps of T5X on the sample: (model_dir, loss of each step)."""
    model_dir = tmp_path_factory.mktemp("t5x") / "run"
    return model_dir, _train(model_dir)


@NEEDS_T5X
@pytest.mark.slow
def test_sample_leaf_trains_under_t5x(t5x_run):
    model_dir, losses = t5x_run
    assert sorted(losses) == [1, 2, 3]
    assert (model_dir / "checkpoint_3" / "commit_success.txt").exists()


# Our trainer with the model and the task of t5x/sample.gin.
OURS = """
from __gin__ import dynamic_registration
include "runs/pretrain.gin"
include "models/prot_t5_tiny.gin"
MIXTURE_OR_TASK_NAME = "sample_iid_denoise"
TASK_FEATURE_LENGTHS = {"inputs": 256, "targets": 256}
BATCH_SIZE = 8
EVAL_BATCHES = 1
LOG_PERIOD = 1
"""


def _module(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"prottrans_jax.{name}", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _train_ours(model_dir, **macros):
    """Runs our trainer; returns the loss of each step."""
    leaf = model_dir.with_suffix(".gin")
    leaf.parent.mkdir(exist_ok=True)
    leaf.write_text(OURS)
    bindings = (f"--gin.{name}={value!r}" for name, value in macros.items())
    _module("train", f"--gin_file={leaf}", f"--model_dir={model_dir}", *bindings)
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return {x["step"]: x["train/loss"] for x in lines if "train/loss" in x}


@pytest.fixture(scope="module")
def ours_after_t5x(t5x_run):
    """Steps 4 to 6 of our trainer, after three of T5X: (model_dir, losses)."""
    model_dir = t5x_run[0].parent / "ours" / "run"
    source = f"t5x:{t5x_run[0]}"
    return model_dir, _train_ours(model_dir, CONTINUE_FROM=source, TRAIN_STEPS=6)


def _assert_same_losses(ours, t5x, steps):
    assert sorted(ours) == sorted(t5x) == list(steps)
    # Losses in float32 of the same batches; the first depends on the parameters alone,
    # the others on the moments too.
    for step in steps:
        assert ours[step] == pytest.approx(t5x[step], rel=3e-6), step


@NEEDS_T5X
@pytest.mark.slow
def test_our_trainer_goes_on_with_a_run_of_t5x(t5x_run, ours_after_t5x):
    t5x = _train(
        t5x_run[0].with_name("further"),
        f'INITIAL_CHECKPOINT_PATH = "{t5x_run[0]}/checkpoint_3"',
        "TRAIN_STEPS = 6",
        # Else T5X goes on with the rows of that run too; ours starts with the first.
        "utils.SaveCheckpointConfig.save_dataset = False",
    )
    _assert_same_losses(ours_after_t5x[1], t5x, range(4, 7))


@pytest.fixture(scope="module")
def converted(ours_after_t5x):
    """Step 6 of our run in T5X's format."""
    folder = ours_after_t5x[0].parent / "converted"
    arguments = (f"--input={ours_after_t5x[0]}", f"--output={folder}", "--to=t5x")
    _module("convert", *arguments, "--optimizer_state")
    return folder / "checkpoint_6"


@NEEDS_T5X
@pytest.mark.slow
def test_t5x_goes_on_with_a_run_of_ours(ours_after_t5x, converted):
    ours = _train_ours(
        converted.parent.with_name("further"),
        CONTINUE_FROM=str(ours_after_t5x[0]),
        TRAIN_STEPS=9,
    )
    t5x = _train(
        converted.parent.with_name("t5x"),
        f'INITIAL_CHECKPOINT_PATH = "{converted}"',
        "TRAIN_STEPS = 9",
    )
    _assert_same_losses(ours, t5x, range(7, 10))


@NEEDS_T5X
@pytest.mark.slow
def test_resumed_run_of_t5x_reads_the_next_rows(t5x_run):
    resumed = t5x_run[0].with_name("resumed")
    shutil.copytree(t5x_run[0], resumed)
    whole = _train(resumed.with_name("whole"), "TRAIN_STEPS = 6")
    losses = _train(resumed, "TRAIN_STEPS = 6")
    assert losses == {step: whole[step] for step in range(4, 7)}


@NEEDS_T5X
@pytest.mark.slow
def test_encoder_gives_the_hidden_states_of_t5xs_network(converted):
    from t5x import checkpoints
    from t5x.examples.t5 import network

    encoder = prottrans_jax.load_encoder(f"t5x:{converted}", dtype="float32")
    config = encoder.config
    module = network.Transformer(
        network.T5Config(
            vocab_size=config.vocab_size,
            emb_dim=config.d_model,
            num_heads=config.num_heads,
            num_encoder_layers=config.num_layers,
            num_decoder_layers=config.num_decoder_layers,
            head_dim=config.head_dim,
            mlp_dim=config.d_ff,
            logits_via_embedding=True,
        )
    )
    state = checkpoints.load_t5x_checkpoint(str(converted))
    tokens, mask = encoder.tokenize(["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYX"])
    theirs = module.apply(
        {"params": state["target"]}, tokens, enable_dropout=False, method="encode"
    )
    ours = encoder(tokens, mask)
    np.testing.assert_allclose(
        np.asarray(ours)[mask], np.asarray(theirs)[mask], rtol=0, atol=1e-5
    )
