"""Runs whose model directory is in a bucket: bits, logs, starts, evaluation, export."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from etils import epath
import pytest
from tensorboard.backend.event_processing import event_accumulator

from cases import runs, stores, trainer_cases
from prottrans_jax.checkpoints import checkpointing, manifests
from prottrans_jax.encoders import exporting
from prottrans_jax.files import folders, paths
from prottrans_jax.training import evaluation, event_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def place(text):
    return paths.place(text, "model_dir")


def in_bucket(bucket, tmp_path, **changes):
    arguments = trainer_cases.arguments(tmp_path, **changes)
    directory = f"{bucket}/tensorboard"
    return arguments | {
        "model_dir": bucket,
        "writers": lambda: (event_files.EventWriter(directory),),
    }


def events(model_dir):
    """(tag, step) to value, without times; a pair that is there twice is an error."""
    values = {}
    with folders.local_copy(place(model_dir) / "tensorboard") as copy:
        reader = event_accumulator.EventAccumulator(
            str(copy),
            size_guidance={event_accumulator.TENSORS: 0},
            purge_orphaned_data=False,
        )
        for tag in reader.Reload().Tags()["tensors"]:
            for event in reader.Tensors(tag):
                assert (tag, event.step) not in values
                values[tag, event.step] = event.tensor_proto.float_val[0]
    return {k: v for k, v in values.items() if not k[0].startswith("timing")}


@stores.slow_on_s3
def test_a_broken_run_in_a_bucket_ends_like_an_unbroken_one_on_disk(bucket, tmp_path):
    whole = trainer_cases.arguments(tmp_path / "whole")
    runs.train(**whole)
    parts = in_bucket(bucket, tmp_path, config_text="# settings")
    with pytest.raises(trainer_cases.EndOfRunError):
        runs.train(**parts | {"train_data": trainer_cases.Batches(broken_at=4)})
    summary = runs.train(**parts)
    assert str(summary.checkpoint) == f"{bucket}/checkpoints/6"
    assert summary.problems == []
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(parts)
    )
    assert trainer_cases.log(parts) == trainer_cases.log(whole)
    logged = {
        (name, line["step"])
        for line in trainer_cases.log(whole)
        for name in line.keys() - {"step"}
    }
    assert set(events(bucket)) == logged
    assert (place(bucket) / "config.gin").read_text() == "# settings"
    assert (place(bucket) / "goodput.jsonl").exists()
    assert not (place(bucket) / "checkpoints" / ".lock").exists()


@pytest.mark.slow
def test_logs_reach_the_bucket_before_each_checkpoint(bucket, tmp_path):
    arguments = in_bucket(bucket, tmp_path, logs_period=1)
    lines_at = {}

    class Watch:
        def write_scalars(self, step, scalars):
            path = place(bucket) / "metrics.jsonl"
            text = path.read_text() if path.exists() else ""
            lines_at[step] = [json.loads(line)["step"] for line in text.splitlines()]

        def flush(self):
            pass

    runs.train(**arguments | {"writers": lambda: (Watch(),)})
    # The line of step 5 is written after the checkpoint of step 4.
    assert lines_at[5] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_profile_is_uploaded(bucket, tmp_path):
    arguments = in_bucket(bucket, tmp_path, eval_data={}, logs_profile_steps=(2, 3))
    runs.train(**arguments)
    names = folders.files_below(place(bucket) / "profile")
    assert any(name.endswith(".xplane.pb") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["start_init_from", "start_continue_from"])
def test_a_run_starts_from_another_run_in_a_bucket(bucket, tmp_path, start):
    first = trainer_cases.arguments(tmp_path, eval_data={}, total_steps=2)
    runs.train(**first | {"model_dir": bucket})
    changes = {start: bucket, "eval_data": {}, "total_steps": 4}
    second = trainer_cases.arguments(tmp_path / "second", **changes)
    runs.train(**second)
    # Resumes, with the same place in its identity.
    assert runs.train(**second | {"total_steps": 4, start: bucket + "/"}).step == 4
    local = trainer_cases.arguments(tmp_path, eval_data={}, total_steps=2)
    runs.train(**local)
    third = trainer_cases.arguments(
        tmp_path / "third", **changes | {start: local["model_dir"]}
    )
    runs.train(**third)
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(second), trainer_cases.final_state(third)
    )


@stores.slow_on_s3
def test_steps_in_a_bucket_are_evaluated_and_exported(bucket, tmp_path):
    arguments = trainer_cases.arguments(tmp_path)
    summary = runs.train(**arguments | {"model_dir": bucket})
    names = ("objective", "optimizer", "partitioner", "eval_data")
    results = dict(
        evaluation.evaluate_checkpoints(
            model_dir=bucket, **{name: arguments[name] for name in names}
        )
    )
    assert results == {6: summary.evaluation}
    runs.train(**arguments)
    for source, folder in ((bucket, "a"), (arguments["model_dir"], "b")):
        (tmp_path / folder).mkdir()
        exporting.export(source, tmp_path / folder)
    weights = [
        (tmp_path / folder / "model.safetensors").read_bytes() for folder in "ab"
    ]
    assert weights[0] == weights[1]
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert f"{bucket}/checkpoints/6" in json.dumps(provenance)


_TRAINER = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
from cases import runs, trainer_cases

class Slow(trainer_cases.Batches):
    def features(self, index, rng):
        time.sleep(0.05)
        return super().features(index, rng)

arguments = trainer_cases.arguments(pathlib.Path("none"), **{settings!r})
changes = {{"model_dir": sys.argv[1], "train_data": Slow()}}
runs.train(**arguments | changes)
"""


def kill_trainers(bucket, tmp_path, kills, steps, seed):
    """Kills a run at random moments; it must end like an unbroken one on disk."""
    settings = {"total_steps": steps, "logs_period": 1}
    whole = trainer_cases.arguments(tmp_path, **settings)
    runs.train(**whole)
    code = _TRAINER.format(tests=str(ROOT / "tests"), settings=settings)
    command = [sys.executable, "-c", code, bucket]
    checkpoints = epath.Path(place(bucket) / "checkpoints")
    rng = random.Random(seed)
    resumed_at = []
    for number in range(kills):
        before = manifests.committed(checkpoints)
        trainer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        if number % 4 == 3:  # Perhaps before it trains.
            time.sleep(rng.uniform(0, 10))
        else:
            while trainer.poll() is None and manifests.committed(checkpoints) == before:
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 1))
        trainer.kill()
        trainer.wait()
        choice = manifests.choose(checkpoints, None)
        assert choice["damaged"] == []
        resumed_at.append(choice["step"] or 0)
    subprocess.run(command, check=True)
    broken = whole | {"model_dir": bucket}
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(broken)
    )
    assert trainer_cases.log(broken) == trainer_cases.log(whole)
    print(f"{kills} kills, resumed at {resumed_at}")
    assert resumed_at == sorted(resumed_at)


@stores.slow_on_s3
def test_a_killed_run_in_a_bucket_ends_like_an_unbroken_one_on_disk(bucket, tmp_path):
    kill_trainers(bucket, tmp_path, kills=2, steps=24, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_of_a_run_in_a_bucket_leave_no_trace(bucket, tmp_path):
    kill_trainers(bucket, tmp_path, kills=20, steps=600, seed=1)


# Stops itself (SIGSTOP) in step 6, when step 4 is saved and step 5 not yet logged; with
# a lease that expires after 3 s, as if this machine were another one.
_PAUSED_TRAINER = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {tests!r})
from cases import runs, trainer_cases
from prottrans_jax.checkpoints import manifests
from prottrans_jax.config import mains
from prottrans_jax.files import leases, paths
from prottrans_jax.training import event_files

leases.machine = lambda: "another machine"
leases.RECENT_S = 1.0
leases.Lease.__init__.__kwdefaults__ |= {{"renew_s": 0.3, "expires_s": 3.0}}

class Paused(trainer_cases.Batches):
    def features(self, index, rng):
        if index == 5:
            checkpoints = paths.place(sys.argv[1] + "/checkpoints", "-")
            while 4 not in manifests.committed(checkpoints):
                time.sleep(0.1)
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().features(index, rng)

def main(argv):
    arguments = trainer_cases.arguments(pathlib.Path("none"), **{settings!r})
    directory = argv[1] + "/tensorboard"
    runs.train(
        **arguments
        | {{"model_dir": argv[1], "train_data": Paused()}}
        | {{"writers": lambda: (event_files.EventWriter(directory),)}}
    )

mains.run(main)
"""


@stores.slow_on_s3
def test_a_paused_run_that_lost_its_lease_ends_and_changes_nothing(bucket, tmp_path):
    settings = {"total_steps": 8, "logs_period": 1}
    code = _PAUSED_TRAINER.format(tests=str(ROOT / "tests"), settings=settings)
    paused = subprocess.Popen(
        [sys.executable, "-c", code, bucket], stderr=subprocess.PIPE, text=True
    )
    try:
        while _state(paused.pid) != "T":
            assert paused.poll() is None, paused.stderr.read()
            time.sleep(0.05)
        arguments = in_bucket(bucket, tmp_path, **settings)
        runs.train(**arguments)
        before = _contents(bucket)
        paused.send_signal(signal.SIGCONT)
        _, said = paused.communicate(timeout=120)
    finally:
        paused.kill()
    assert paused.returncode == 1
    assert "lost the lock" in said.splitlines()[-1] and "Traceback" not in said
    assert _contents(bucket) == before
    assert [line["step"] for line in trainer_cases.log(arguments)] == [*range(1, 9)]


def _state(pid):
    """State of a process, as `ps` shows it; "T": stopped."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _contents(bucket):
    """Name to bytes of all objects."""
    root = place(bucket)
    return {name: (root / name).read_bytes() for name in folders.files_below(root)}


@pytest.mark.slow
def test_a_second_trainer_is_refused_and_changes_nothing(bucket, tmp_path):
    arguments = in_bucket(bucket, tmp_path, eval_data={})
    runs.train(**arguments)
    names = folders.files_below(place(bucket))
    with checkpointing.Checkpointer(f"{bucket}/checkpoints"):
        with pytest.raises(manifests.CheckpointError, match="is being written by"):
            runs.train(**arguments | {"total_steps": 8})
    assert folders.files_below(place(bucket)) == names


@stores.slow_on_s3
def test_compiled_programs_are_cached_in_a_bucket(bucket):
    code = (
        "import prottrans_jax.files.buckets, jax; "
        "jax.jit(lambda x: x * 2 + 1)(3).block_until_ready()"
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": bucket,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert any("lambda" in name for name in folders.files_below(place(bucket)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_logs_that_cannot_be_uploaded_do_not_end_a_run(bucket, tmp_path, faults):
    faults.add(
        stores.Fault(
            lambda method, path: method in ("POST", "PUT") and "metrics.jsonl" in path,
            times=10**6,
            status=503,
        )
    )
    arguments = in_bucket(bucket, tmp_path, eval_data={}, checkpoints_period=6)
    summary = runs.train(**arguments)
    (problem,) = summary.problems
    assert f"{bucket}/metrics.jsonl is not complete" in problem and "503" in problem
    assert trainer_cases.final_state(arguments)[0] == 6
