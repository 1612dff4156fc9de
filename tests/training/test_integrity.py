"""A run whose device changes a bit goes back to its last checkpoint."""

import ctypes
import json
import pathlib
import random

import jax
import pytest

from cases import process_cases, runs, trainer_cases
from prottrans_jax import partitioning
from prottrans_jax.training import integrity, replicas


def flip_in_memory(params, device, rng):
    """Changes one bit of a parameter's replica where the device keeps it."""
    leaf = rng.choice(jax.tree.leaves(params))
    (shard,) = (s for s in leaf.addressable_shards if s.device == device)
    shard.data.block_until_ready()
    address = shard.data.unsafe_buffer_pointer() + rng.randrange(shard.data.nbytes)
    byte = ctypes.c_uint8.from_address(address)
    byte.value ^= 1 << rng.randrange(8)


def fill(leaf, device, value):
    """Overwrites a replica where the device keeps it."""
    (shard,) = (s for s in leaf.addressable_shards if s.device == device)
    shard.data.block_until_ready()
    address = shard.data.unsafe_buffer_pointer()
    words = (ctypes.c_float * shard.data.size).from_address(address)
    words[:] = [value] * len(words)


def corrupting(monkeypatch, steps, device=2):
    """Lets a device change a bit after each of these steps, the first time only."""
    left, rng, push = list(steps), random.Random(1), integrity.Comparison.push

    def corrupt(self, step, params):
        if step in left:
            left.remove(step)
            flip_in_memory(params, jax.devices()[device], rng)
        push(self, step, params)

    monkeypatch.setattr(integrity.Comparison, "push", corrupt)


def arguments(tmp_path, **changes):
    return trainer_cases.arguments(
        tmp_path,
        partitioner=partitioning.Partitioner(num_devices=4),
        eval_data={},
        evaluation_period=12,
        total_steps=12,
        checkpoints_period=5,
        logs_period=1,
        replica_checks_period=4,
        **changes,
    )


def test_corrupted_run_ends_with_the_bits_of_a_sound_one(tmp_path, monkeypatch, caplog):
    sound = arguments(tmp_path / "sound")
    runs.train(**sound)
    corrupted = arguments(tmp_path / "corrupted")
    with monkeypatch.context() as patch:
        # Found at step 4, and by the comparison before the save of step 10.
        corrupting(patch, [3, 9])
        runs.train(**corrupted)
    assert caplog.text.count("silent corruption") == 2
    for step in (4, 10):
        assert f"Step {step}: silent corruption. device 2 (cpu) of process 0" in (
            caplog.text
        )
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(sound), trainer_cases.final_state(corrupted)
    )
    assert trainer_cases.log(sound) == trainer_cases.log(corrupted)


def test_loss_that_a_corrupted_replica_makes_infinite_is_no_fault_of_the_data(
    tmp_path, monkeypatch, caplog
):
    push, left = integrity.Comparison.push, [3]

    def corrupt(self, step, params):
        if step in left:
            left.remove(step)
            for leaf in jax.tree.leaves(params):
                fill(leaf, jax.devices()[2], float("nan"))
        push(self, step, params)

    with monkeypatch.context() as patch:
        patch.setattr(integrity.Comparison, "push", corrupt)
        # No comparison is due before the loss is read.
        summary = runs.train(**arguments(tmp_path) | {"replica_checks_period": 100})
    assert summary.step == 12
    assert "silent corruption. device 2 (cpu)" in caplog.text


def test_device_that_is_corrupted_again_and_again_ends_the_run(tmp_path, monkeypatch):
    corrupting(monkeypatch, [3] * 9)
    with pytest.raises(replicas.CorruptionError, match="take this device out"):
        runs.train(**arguments(tmp_path), replica_checks_max_rewinds=2)


def test_one_device_has_nothing_to_compare(tmp_path, caplog):
    single = arguments(tmp_path) | {
        "partitioner": partitioning.Partitioner(num_devices=1),
        "total_steps": 2,
    }
    runs.train(**single)
    assert "no parameter has a replica" in caplog.text


# One of two processes of two devices each; a device of the second one changes a bit.
PROCESS = """
import os, pathlib, random, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/training"]
folder, process, port = pathlib.Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
import jax
import test_integrity
from cases import runs
from prottrans_jax.distributed import start
from prottrans_jax.training import integrity
start.initialize(f"localhost:{port}", 2, process, timeout_s=60)
push, left = integrity.Comparison.push, [3]
def corrupt(self, step, params):
    if process == 1 and step in left:
        left.remove(step)
        device = jax.local_devices()[1]
        test_integrity.flip_in_memory(params, device, random.Random(1))
    push(self, step, params)
integrity.Comparison.push = corrupt
sys.exit(runs.train(**test_integrity.arguments(folder)).exit_code)
"""


@pytest.mark.slow
def test_all_processes_go_back_when_a_device_of_one_is_corrupted(tmp_path):
    tests = pathlib.Path(__file__).resolve().parents[1]
    port = process_cases.free_port()
    processes = [
        process_cases.start_python("-c", PROCESS, tmp_path, tests, process, port)
        for process in (0, 1)
    ]
    for status, output in [process_cases.finish(p, 240) for p in processes]:
        assert status == 0, output[-5000:]
        assert "Step 4: silent corruption" in output
        assert "of process 1 (" in output and "the other 3 of 4 replicas" in output
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 13))
