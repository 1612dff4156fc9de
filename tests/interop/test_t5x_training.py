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
import subprocess
import sys

import numpy as np
import pytest

from prottrans_jax.config import reading
from prottrans_jax.data.rows import loader
from prottrans_jax.data.seqio import byte_vocabulary, t5x_batches
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

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


def _train(model_dir, *bindings, leaf="t5x/sample.gin"):
    """Runs `python -m t5x.train`; returns the loss of each step."""
    command = [
        *(sys.executable, "-m", "t5x.train", f"--gin_search_paths={GIN}"),
        *(f"--gin_file={leaf}", f'--gin.MODEL_DIR="{model_dir}"'),
        "--gin_bindings=train.stats_period = 1",
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pattern = r"\[(\d+)\] collection=train .*?\bloss=([\d.]+)"
    return {int(step): float(loss) for step, loss in re.findall(pattern, done.stderr)}


@pytest.fixture(scope="module")
def t5x_run(tmp_path_factory):
    """Three steps of T5X on the sample: (model_dir, loss of each step)."""
    model_dir = tmp_path_factory.mktemp("t5x") / "run"
    return model_dir, _train(model_dir)


@NEEDS_T5X
def test_sample_leaf_trains_under_t5x(t5x_run):
    model_dir, losses = t5x_run
    assert sorted(losses) == [1, 2, 3]
    assert (model_dir / "checkpoint_3" / "commit_success.txt").exists()
