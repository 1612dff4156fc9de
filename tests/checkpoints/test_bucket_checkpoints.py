"""Checkpoints in buckets: commit without rename, damage, outages, one writer."""

import itertools
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import pytest

from cases import stores
from cases.checkpoint_cases import (
    abstract,
    assert_bit_equal,
    make_mesh,
    make_state,
    restore,
    save_steps,
)
from prottrans_jax.checkpoints import checkpointing, manifests, stored_steps
from prottrans_jax.files import folders, leases, paths

ROOT = pathlib.Path(__file__).resolve().parents[2]


def place(text):
    return paths.place(text, "directory")


def test_steps_are_saved_kept_and_restored_with_the_same_bits(store):
    save_steps(store, range(0, 50, 10), keep=2)
    restored = restore(store)
    assert_bit_equal(restored.state, make_state(40))
    assert (restored.step, restored.metadata) == (40, {"next_row": 440})
    assert checkpointing.Checkpointer(store, read_only=True).steps() == [30, 40]
    names = [path.name for path in folders.children(place(store))]
    # A lease is deleted when it ends; a lock file stays.
    assert [name for name in names if name != ".lock"] == ["30", "40"]
    assert stored_steps.locate(store + "/40") == (place(store), 40)
    save_steps(store, [50])
    assert restore(store).step == 50


def test_a_sharded_state_moves_between_meshes_through_a_bucket(bucket):
    state = make_state(1, make_mesh(2, 4))
    with checkpointing.Checkpointer(bucket) as checkpointer:
        checkpointer.save(1, state, {})
    like = make_state(0, make_mesh(4, 2))
    restored = restore(bucket, like=like).state
    assert_bit_equal(restored, state)


def test_a_second_run_is_told_who_writes_there(store):
    with checkpointing.Checkpointer(store):
        with pytest.raises(manifests.CheckpointError) as error:
            checkpointing.Checkpointer(store)
    message = str(error.value)
    assert f"{store} is being written by process {os.getpid()} on " in message
    assert "another model_dir" in message
    with checkpointing.Checkpointer(store):
        pass  # Closed: free again.


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    "hows",
    [[*DAMAGE], *(pytest.param([how], marks=pytest.mark.slow) for how in DAMAGE)],
    ids="-".join,
)
def test_every_damaged_object_is_named_and_the_step_before_is_used(
    bucket, hows, caplog
):
    root = place(bucket)
    save_steps(bucket, [1, 2])
    unread = ("commit_success.txt", "_CHECKPOINT_METADATA")
    names = [
        name
        for name in folders.files_below(root / "2")
        if not name.endswith(unread) and (root / "2" / name).stat().length
    ]
    assert {"sha256.json", "metadata.json", "_METADATA"} <= set(names)
    for name, how in zip(names, itertools.cycle(hows), strict=False):
        path = root / "2" / name
        before = path.read_bytes()
        DAMAGE[how](path)
        caplog.clear()
        assert manifests.choose(root, None) == {"step": 1, "damaged": [2]}, name
        assert f"Checkpoint 2 is damaged: {path}" in caplog.text
        path.write_bytes(before)
    assert restore(bucket).step == 2
    flip(path)
    restored = restore(bucket)
    assert (restored.step, restored.lost_steps) == (1, 1)
    assert_bit_equal(restored.state, make_state(1))


def test_damaged_steps_are_set_aside_when_their_loss_is_accepted(bucket):
    save_steps(bucket, [1, 2])
    flip(place(bucket) / "2" / "metadata.json")
    with checkpointing.Checkpointer(bucket) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0)), max_lost_steps=None)
        assert restored.step == 1
        checkpointer.save(2, make_state(2), {})
    assert restore(bucket).step == 2
    assert (place(bucket) / "2.damaged-1" / "metadata.json").exists()


def without_marks(step):
    """As a save leaves a step that is killed before its commit."""
    for name in ("sha256.json", "commit_success.txt"):
        (step / name).unlink()


def test_an_unfinished_step_is_not_seen_and_removed_by_the_next_run(bucket, caplog):
    save_steps(bucket, [1, 2])
    without_marks(place(bucket) / "2")
    reader = checkpointing.Checkpointer(bucket, read_only=True)
    assert reader.steps() == [1]
    restored = reader.restore(abstract(make_state(0)))
    assert (restored.step, restored.lost_steps) == (1, 0)
    assert (place(bucket) / "2").exists()
    with checkpointing.Checkpointer(bucket):
        assert not (place(bucket) / "2").exists()
    assert "left by an interrupted save" in caplog.text


def test_a_step_without_marks_of_the_only_save_is_no_run(bucket):
    save_steps(bucket, [1])
    without_marks(place(bucket) / "1")
    assert restore(bucket) is None


def test_an_outage_does_not_pass_for_damage(bucket, faults):
    save_steps(bucket, [1, 2])
    missing_right = stores.Fault(
        lambda method, path: "metadata.json" in path and method == "GET",
        times=1000,
        status=403,
    )
    faults.add(missing_right)
    with pytest.raises(PermissionError) as error:
        restore(bucket)
    assert error.value.filename == f"{bucket}/2/metadata.json"
    faults.clear()
    assert restore(bucket).step == 2


def test_short_faults_of_the_storage_do_not_stop_a_save(bucket, faults):
    rng = random.Random(0)

    def now_and_then(method, path):
        return rng.random() < 0.05 and "batch" not in path

    fault = faults.add(stores.Fault(now_and_then, times=4, status=503))
    slow = faults.add(stores.Fault(lambda *_: rng.random() < 0.1, 5, delay_s=0.3))
    save_steps(bucket, [1, 2])
    cut = faults.add(
        stores.Fault(lambda m, p: m == "GET" and "/d/" in p, times=2, keep=10)
    )
    restored = restore(bucket)
    assert fault.seen + slow.seen > 0 and cut.seen == 2
    assert_bit_equal(restored.state, make_state(2))


def test_a_run_that_lost_its_lease_commits_nothing(bucket, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 3600.0)
    checkpointer = checkpointing.Checkpointer(bucket)
    checkpointer.save(1, make_state(1), {})
    checkpointer.wait()
    lock = place(bucket) / ".lock"
    lock.write_bytes(lock.read_bytes().replace(b'"token": "', b'"token": "0'))
    checkpointer.save(2, make_state(2), {})
    with pytest.raises(checkpointing.SaveError, match="lost the lock") as error:
        checkpointer.wait()
    assert (error.value.step, error.value.last_good) == (2, 1)
    checkpointer.close()
    assert restore(bucket).step == 1
    assert lock.exists()  # Of the other run.


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_save_that_fails_for_good_names_object_tries_and_the_last_good_step(
    bucket, faults
):
    with checkpointing.Checkpointer(bucket) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        checkpointer.wait()
        faults.add(
            stores.Fault(
                lambda method, path: method in ("POST", "PUT") and ".lock" not in path,
                times=10**6,
                status=503,
            )
        )
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(checkpointing.SaveError) as error:
            checkpointer.wait()
        message = str(error.value)
        # From gcsfs or s3fs, or from tensorstore, whichever gives up first. For S3
        # tensorstore names only the key, and no status.
        assert f"{bucket.rpartition('/')[2]}/2/" in message
        assert re.search(r"\d+ (tries of|retry attempts) ", message)
        assert re.search("503|Service Unavailable|failed: Unknown", message)
        assert "Last good step: 1" in message and "\n" not in message
        faults.clear()
        checkpointer.save(3, make_state(3), {})
    assert restore(bucket).step == 3


@pytest.mark.parametrize(
    "status",
    [
        # Billing or a quota of Google; QuotaExceeded of stores with S3's interface.
        403,
        pytest.param(507, marks=pytest.mark.slow),  # Insufficient Storage
    ],
)
def test_a_full_bucket_ends_a_save_with_its_status_and_keeps_the_last_step(
    bucket, faults, status
):
    with checkpointing.Checkpointer(bucket) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        checkpointer.wait()
        faults.add(
            stores.Fault(
                lambda method, path: method in ("POST", "PUT") and ".lock" not in path,
                times=10**6,
                status=status,
            )
        )
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(checkpointing.SaveError) as error:
            checkpointer.wait()
        message = str(error.value)
        assert f"{bucket.rpartition('/')[2]}/2" in message and "\n" not in message
        assert re.search(f"{status}|Forbidden|Insufficient|Unknown", message), message
        assert "Last good step: 1" in message
        faults.clear()
    assert restore(bucket).step == 1


_SAVER = """
import sys
sys.path.insert(0, {tests!r})
from cases.checkpoint_cases import make_state
from prottrans_jax.checkpoints import checkpointing
with checkpointing.Checkpointer(sys.argv[1], keep=2) as checkpointer:
    restored = checkpointer.restore(make_state(0))
    for step in range(restored.step + 1 if restored else 1, 10**6):
        checkpointer.save(step, make_state(step), {{}})
        checkpointer.wait()
        print(step, flush=True)
"""


def kill_savers(directory, kills, seed):
    """Kills a saver at random moments; every committed step must be sound."""
    rng = random.Random(seed)
    code = _SAVER.format(tests=str(ROOT / "tests"))
    told = 0
    for _ in range(kills):
        saver = subprocess.Popen(
            [sys.executable, "-c", code, directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(rng.randint(1, 3)):
            told = int(saver.stdout.readline())
        time.sleep(rng.uniform(0, 0.6))
        saver.kill()
        rest, _ = saver.communicate()
        told = max([told, *map(int, rest.split())])
        restored = restore(directory)
        # The kill may come between the commit and its line.
        assert restored.step in (told, told + 1) and restored.lost_steps == 0
        assert_bit_equal(restored.state, make_state(restored.step))


@stores.slow_on_s3
def test_a_saver_killed_at_any_moment_leaves_its_last_committed_step(bucket):
    kill_savers(bucket, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_saver_killed_twenty_times_leaves_its_last_committed_step(bucket):
    kill_savers(bucket, kills=20, seed=1)
