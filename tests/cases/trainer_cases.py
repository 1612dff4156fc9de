"""Runs of the trainer on a model of a few thousand parameters and made-up batches."""

import json

import jax
import numpy as np

from cases import loader_cases, runs
from prottrans_jax import partitioning
from prottrans_jax.checkpoints import checkpointing
from prottrans_jax.files import paths
from prottrans_jax.models import t5
from prottrans_jax.objectives import denoising
from prottrans_jax.optimizers import algorithms

LENGTH, BATCH = 8, 16


class EndOfRunError(Exception):
    """Ends a run between two checkpoints, as a kill would."""


class Batches(loader_cases.Rows):
    """Rows for denoising; some batches are not finite, or end the run."""

    vocab_size = 128
    batch_size = BATCH

    def __init__(self, seed=0, num_batches=None, poison=(), broken_at=None):
        super().__init__(seed, num_batches)
        self._poison = poison
        self._broken_at = broken_at

    def features(self, index, rng):
        if index == self._broken_at:
            raise EndOfRunError
        tokens = rng.integers(3, 23, (BATCH, LENGTH), np.int32)
        lengths = rng.integers(3, LENGTH + 1, (BATCH, 1))
        real = np.arange(LENGTH) < lengths
        corrupted = (rng.random((BATCH, LENGTH)) < 0.3) & real
        features = {
            "encoder_input_tokens": np.where(corrupted, 127, tokens) * real,
            "decoder_target_tokens": tokens * real,
            "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1] * real,
            "decoder_loss_weights": real.astype(np.float32),
            "encoder_segment_ids": real.astype(np.int32),
            "decoder_segment_ids": real.astype(np.int32),
            "decoder_corrupted": corrupted.astype(np.int32),
        }
        if index in self._poison:
            features["decoder_loss_weights"] = features["decoder_loss_weights"] * np.inf
        return features


def arguments(tmp_path, **changes):
    config = t5.T5Config(
        vocab_size=128,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=4,
        head_dim=6,
        d_model=16,
        d_ff=24,
        dropout_rate=changes.pop("dropout_rate", 0.1),
    )
    arguments = dict(
        model_dir=str(tmp_path / "run"),
        objective=denoising.Denoising(t5.T5(config)),
        train_data=Batches(),
        eval_data={"validation": Batches(seed=1, num_batches=2)},
        optimizer=algorithms.AdamW(learning_rate=1e-2),
        partitioner=partitioning.Partitioner(num_devices=1),
        total_steps=6,
        evaluation_period=4,
        checkpoints_period=2,
        logs_period=3,
        seed=5,
    )
    return arguments | changes


def final_state(arguments):
    saver = checkpointing.Checkpointer(
        arguments["model_dir"] + "/checkpoints", read_only=True
    )
    plan = runs.plan(**arguments)
    restored = saver.restore(plan.abstract)
    return restored.step, jax.tree.map(np.asarray, restored.state)


def log(arguments):
    path = paths.place(arguments["model_dir"], "model_dir") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("timing")}
        for line in lines
    ]


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def damage_checkpoint(arguments, step):
    model_dir = paths.place(arguments["model_dir"], "model_dir")
    step_dir = model_dir / "checkpoints" / str(step)
    (step_dir / "_METADATA").write_text("")
