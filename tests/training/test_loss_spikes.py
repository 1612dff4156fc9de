"""Losses far above the usual: stopped at, skipped, or rewound."""

import json
import math
import pathlib

import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax.training import loss_spikes, run_settings

SPIKE = 20  # Index of the batch; its step is one more.


class Spiking(trainer_cases.Batches):
    """From `SPIKE` on, one batch or all have targets that no batch had before.

    Args:
      last: index of the last such batch.
      skip_at: from this batch on, `skipped` batches are left out.
    """

    def __init__(self, last=SPIKE, skip_at=10**9, skipped=0, **options):
        super().__init__(**options)
        self._last, self._skip_at, self._skipped = last, skip_at, skipped

    def batch(self, index, rows=slice(None)):
        return super().batch(index + self._skipped * (index >= self._skip_at), rows)

    def features(self, index, rng):
        features = super().features(index, rng)
        if SPIKE <= index <= self._last:
            tokens = features["decoder_target_tokens"]
            features["decoder_target_tokens"] = np.where(tokens, tokens + 80, 0)
        return features


def arguments(tmp_path, policy, **changes):
    arguments = trainer_cases.arguments(
        tmp_path,
        train_data=Spiking(),
        eval_data={},
        total_steps=27,
        evaluation_period=27,
        checkpoints_period=3,
        logs_period=1,
        loss_spikes_policy=policy,
        loss_spikes_window=5,
        loss_spikes_factor=1.3,
    )
    return arguments | changes


def spikes_of(arguments):
    path = pathlib.Path(arguments["model_dir"], "loss_spikes.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def skipped(arguments):
    lines = trainer_cases.log(arguments)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["step"] for line in lines if line["train/skipped_steps"]]


def broken_and_resumed(arguments, broken_at):
    """A run that ends before a batch as by a kill, and the next one."""
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**arguments | {"train_data": Spiking(broken_at=broken_at)})
    runs.train(**arguments)


def test_stop_names_the_step_its_loss_and_its_records(tmp_path):
    stopping = arguments(tmp_path, "stop")
    with pytest.raises(loss_spikes.LossSpikeError, match="Step 21: the loss"):
        runs.train(**stopping)
    (spike,) = spikes_of(stopping)
    assert spike["step"] == 21 and spike["loss"] > spike["limit"] > 0
    assert spike["record_ids"]


def test_skipped_spike_leaves_no_trace_in_the_state_and_resumes_alike(tmp_path):
    unbroken = arguments(tmp_path / "a", "skip")
    runs.train(**unbroken)
    assert skipped(unbroken) == [21]
    broken = arguments(tmp_path / "b", "skip")
    broken_and_resumed(broken, broken_at=23)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(unbroken), trainer_cases.final_state(broken)
    )
    assert skipped(broken) == [21]
    assert spikes_of(broken) == spikes_of(unbroken)


def test_too_many_spikes_in_a_row_are_not_skipped(tmp_path):
    data = Spiking(last=10**9)
    skipping = arguments(tmp_path, "skip", train_data=data)
    with pytest.raises(loss_spikes.LossSpikeError, match=r"3 step\(s\) in a row"):
        runs.train(**skipping, loss_spikes_max_skipped_steps=2)


REWIND = dict(loss_spikes_rewind_steps=3, loss_spikes_skipped_batches=4)


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
    """A run that was not broken. Step 21 is the spike; 3 steps before, it was saved."""
    rewound = arguments(tmp_path_factory.mktemp("rewound"), "rewind", **REWIND)
    runs.train(**rewound)
    return rewound


def test_rewound_run_is_one_whose_data_lack_the_skipped_batches(rewound, tmp_path):
    data = Spiking(skip_at=18, skipped=4)
    smooth = arguments(tmp_path, "rewind", **REWIND, train_data=data)
    runs.train(**smooth)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(rewound), trainer_cases.final_state(smooth)
    )
    assert trainer_cases.log(rewound) == trainer_cases.log(smooth)
    assert [spike["step"] for spike in spikes_of(rewound)] == [21]


@pytest.mark.parametrize("broken_at", [24, pytest.param(28, marks=pytest.mark.slow)])
def test_rewound_run_resumes_with_the_bits_of_an_unbroken_one(
    rewound, tmp_path, broken_at
):
    # Before batch 24 no checkpoint follows the rewind, before 28 two do.
    broken = arguments(tmp_path, "rewind", **REWIND)
    broken_and_resumed(broken, broken_at)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(rewound), trainer_cases.final_state(broken)
    )
    assert trainer_cases.log(rewound) == trainer_cases.log(broken)


def test_run_that_rewinds_again_and_again_ends(tmp_path):
    rewinding = arguments(tmp_path, "rewind", train_data=Spiking(last=10**9), **REWIND)
    # The batches after the skipped ones are spikes, too: of steps 19 and 16.
    with pytest.raises(loss_spikes.LossSpikeError, match="Step 16: the loss"):
        runs.train(**rewinding, loss_spikes_max_rewinds=2)


def test_limit_does_not_depend_on_how_soon_a_loss_is_known():
    spikes = run_settings.LossSpikes(policy="stop", window=3, factor=2.0)
    losses = loss_spikes.Losses(spikes)
    for step, loss in enumerate([5.0, 4.0, 3.0, 100.0], 1):
        before = losses.limit(step + 1)
        losses.add(step, loss)
        assert losses.limit(step + 1) == before
    assert losses.limit(4) == math.inf  # Steps 1 and 2 do not fill the window.
    assert losses.limit(5) == 8.0
    resumed = loss_spikes.Losses(spikes, json.loads(json.dumps(losses.state())))
    assert resumed.limit(5) == 8.0 and resumed.limit(6) == losses.limit(6) == 8.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"policy": "ignore"}, "choose 'off', 'stop', 'skip' or 'rewind'"),
        ({"factor": 1.0}, "factor=1.0: must be"),
        ({"window": 0}, "window=0: must be"),
    ],
)
def test_settings_out_of_range_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        run_settings.LossSpikes(**setting)
