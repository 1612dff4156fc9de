"""Buckets of time over all processes of a run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cases import runs, trainer_cases
from prottrans_jax.files import paths
from prottrans_jax.training import goodput

ZERO = dict.fromkeys(goodput.BUCKETS[:-2], 0.0)


def account(*entries):
    total = goodput.Account()
    for entry in entries:
        total.add(entry)
    return total


def start(time, step):
    return {"event": "start", "time": time, "step": step}


def steps(time, step, checkpoint=False, **seconds):
    return {
        "event": "steps",
        "time": time,
        "step": step,
        "seconds": ZERO | seconds,
        "checkpoint": checkpoint,
    }


def test_time_of_one_process_is_its_last_entry():
    total = account(
        start(100, 0),
        steps(102, 0, checkpoint=True, start=2),
        steps(110, 4, start=2, productive=6, data=2),
        steps(120, 8, start=2, productive=15, data=3),
    )
    assert {k: v for k, v in total.seconds.items() if v} == {
        "start": 2,
        "productive": 15,
        "data": 3,
    }
    assert (total.wall, total.goodput, total.starts) == (20, 0.75, 1)


def test_steps_after_the_checkpoint_are_lost_and_the_gap_is_restart():
    total = account(
        start(0, 0),
        steps(10, 4, checkpoint=True, productive=10),
        steps(13, 6, productive=13),
        steps(16, 8, productive=16),
        start(20, 4),
        steps(26, 8, checkpoint=True, productive=5, start=1),
    )
    assert total.seconds["lost"] == 6
    assert total.seconds["restart"] == 4
    assert total.seconds["productive"] == 15
    assert total.wall == 26


def test_a_run_that_goes_back_over_two_processes_loses_the_steps_of_both():
    total = account(
        start(0, 0),
        steps(10, 4, checkpoint=True, productive=10),
        steps(20, 8, checkpoint=True, productive=20),
        start(20, 8),
        steps(30, 12, checkpoint=True, productive=10),
        start(30, 4),
    )
    assert (total.seconds["productive"], total.seconds["lost"]) == (10, 20)


def test_half_a_span_is_lost_when_the_run_goes_back_into_it():
    total = account(
        start(0, 0), steps(8, 8, productive=8), start(8, 2), steps(14, 8, productive=6)
    )
    assert (total.seconds["lost"], total.seconds["productive"]) == (6, 8)


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "goodput.jsonl"
    lines = [start(0, 0), steps(5, 1, productive=5)]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "st')
    assert goodput.read(path).wall == 5


def test_entries_between_checkpoints_replace_each_other(tmp_path, monkeypatch):
    path, spent = tmp_path / "goodput.jsonl", {"compute": 0.0}
    clock = [0.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: clock[0])
    ledger = goodput.Ledger(path, lambda: spent)
    ledger.begin(0)
    for step in range(1, 101):
        clock[0] += 6.0
        spent["compute"] = 10_000.0 / step  # Also shorter lines.
        ledger.note(step, at_checkpoint=step % 50 == 0)
    ledger.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 50, 100]


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "goodput.jsonl").mkdir()
    ledger = goodput.Ledger(tmp_path / "goodput.jsonl", lambda: {"compute": 1.0})
    ledger.begin(0)
    ledger.note(1, at_checkpoint=True)
    ledger.close()
    assert caplog.text.count("could not be written") == 1


# A training that kills itself with -9 the first time it has logged step 58.
KILLED = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from cases import process_cases, runs, trainer_cases
from prottrans_jax.files import paths
from prottrans_jax.training import goodput
folder = pathlib.Path(sys.argv[1])
process_cases.kill_once(
    folder / "run" / "metrics.jsonl", 58, folder / "killed"
)
class Slow(trainer_cases.Batches):
    def features(self, index, rng):
        time.sleep(0.05)
        return super().features(index, rng)
arguments = trainer_cases.arguments(folder, total_steps=60, evaluation_period=30)
arguments |= {"logs_period": 1, "checkpoints_period": 30, "train_data": Slow()}
runs.train(**arguments, started=goodput.process_start())
os._exit(0)  # The end of the interpreter is no part of the run.
"""


def test_buckets_of_a_killed_and_resumed_run_add_up_to_the_time_outside(tmp_path):
    tests = pathlib.Path(__file__).resolve().parents[1]
    begin = time.monotonic()
    for expected in (-signal.SIGKILL, 0):
        command = [sys.executable, "-c", KILLED, tmp_path, tests]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        assert subprocess.run(command, env=env).returncode == expected
        if expected:
            time.sleep(1)
    wall_s = time.monotonic() - begin
    seconds = goodput.read(tmp_path / "run" / goodput.NAME).seconds
    print({name: round(value, 2) for name, value in seconds.items()}, wall_s)
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=0.02)
    assert seconds["restart"] > 1 and seconds["compile"] > 0
    assert seconds["start"] > 0 and seconds["data"] > 0
    assert seconds["lost"] > 0  # Steps 31 to 58, a second and a half.


def test_goodput_is_in_the_log_and_in_the_summary(tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    summary = runs.train(**arguments)
    log = pathlib.Path(arguments["model_dir"], "metrics.jsonl").read_text()
    last = json.loads(log.splitlines()[-1])
    assert 0 < last["timing/goodput"] < 1
    assert last["timing/run_seconds/compile"] > 0
    assert set(summary.run_seconds) == set(goodput.BUCKETS)
    assert summary.run_seconds["checkpoint"] > 0


def test_a_start_is_in_the_account_in_a_bucket_at_once(bucket):
    path = paths.place(f"{bucket}/goodput.jsonl", "model_dir")
    ledger = goodput.Ledger(path, lambda: {"compute": 1.0})
    ledger.begin(0)
    assert goodput.read(path).starts == 1
    ledger.close()
