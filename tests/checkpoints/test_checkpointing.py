"""Saves are asynchronous, verified by SHA-256, and lose at most what they name."""

import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import jax
from jax import numpy as jnp
import numpy as np
from orbax import checkpoint as ocp
import pytest

from cases.checkpoint_cases import (
    abstract,
    assert_bit_equal,
    make_mesh,
    make_state,
    read_arrays,
    restore,
    save_steps,
)
from prottrans_jax.checkpoints import (
    checkpointing,
    manifests,
    stored_arrays,
)
from prottrans_jax.files import writing

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_restored_state_is_bit_equal_and_its_metadata_comes_along(tmp_path):
    save_steps(tmp_path, [5])
    restored = restore(tmp_path)
    assert_bit_equal(restored.state, make_state(5))
    assert (restored.step, restored.metadata) == (5, {"next_row": 55})


def test_step_zero_is_restored(tmp_path):
    save_steps(tmp_path, [0])
    assert restore(tmp_path).step == 0
    assert restore(tmp_path, step=0).step == 0


def test_an_empty_directory_restores_nothing(tmp_path):
    assert restore(tmp_path / "absent") is None


def test_state_donated_right_after_save_is_stored_as_it_was(tmp_path):
    state = {"params": {"w": jnp.arange(300_000, dtype=jnp.float32)}}
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.negative, s), donate_argnums=0)
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        jax.block_until_ready(overwrite(state))
    assert_bit_equal(restore(tmp_path, like=overwrite(expected)).state, expected)


@pytest.mark.parametrize(
    ("keep", "keep_period", "left"),
    [
        (2, None, [30, 40]),
        (1, 20, [0, 20, 40]),
        (None, None, [0, 10, 20, 30, 40]),
    ],
)
def test_steps_are_kept_by_count_and_by_period(tmp_path, keep, keep_period, left):
    save_steps(tmp_path, range(0, 50, 10), keep=keep, keep_period=keep_period)
    assert restore(tmp_path).step == 40
    reader = checkpointing.Checkpointer(tmp_path, read_only=True)
    assert reader.steps() == left
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_dir()] == [
        str(step) for step in left
    ]


def test_a_file_with_one_more_byte_is_named_and_the_step_before_is_used(
    tmp_path, caplog
):
    # Truncated, deleted and flipped bits: drills/damage.py.
    save_steps(tmp_path, [1, 2])
    file = tmp_path / "2" / "_METADATA"
    file.write_bytes(file.read_bytes() + b"\0")
    assert restore(tmp_path).step == 1
    assert str(file) in caplog.text


def test_a_step_without_manifest_is_not_listed_and_not_used(tmp_path, caplog):
    save_steps(tmp_path, [3, 4])
    (tmp_path / "4" / manifests.NAME).unlink()
    assert checkpointing.Checkpointer(tmp_path, read_only=True).steps() == [3]
    assert restore(tmp_path).step == 3
    assert f"{manifests.NAME} is missing" in caplog.text


def test_a_directory_of_damaged_steps_only_is_an_error_not_a_fresh_start(tmp_path):
    save_steps(tmp_path, [3, 4])
    for step in ("3", "4"):
        (tmp_path / step / "_METADATA").unlink()
    with pytest.raises(manifests.CheckpointError, match=r"(?s)4/_METADATA.*3/_META"):
        restore(tmp_path)


def test_a_damaged_step_is_not_replaced_by_another_when_asked_for_by_number(tmp_path):
    save_steps(tmp_path, [3, 4])
    (tmp_path / "4" / "_METADATA").unlink()
    with pytest.raises(manifests.CheckpointError, match="4/_METADATA"):
        restore(tmp_path, step=4)
    with pytest.raises(manifests.CheckpointError, match=r"no step 7.*\[3, 4\]"):
        restore(tmp_path, step=7)


def damage(directory, *steps):
    for step in steps:
        (directory / str(step) / "_METADATA").write_text("")


def test_going_back_to_step_zero_is_refused_unless_it_is_asked_for(tmp_path):
    save_steps(tmp_path, [0, 10, 20])
    damage(tmp_path, 10, 20)
    message = (
        r"steps 10, 20 are damaged.*20/_METADATA.*sound one is of step 0: "
        r"20 steps would be lost"
    )
    with pytest.raises(manifests.CheckpointError, match=message) as error:
        restore(tmp_path)
    assert "\n" not in str(error.value)
    assert restore(tmp_path, step=0).step == 0


def test_going_back_further_than_the_limit_is_refused(tmp_path, caplog):
    save_steps(tmp_path, [5, 10, 20], keep=None)
    damage(tmp_path, 10, 20)
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(manifests.CheckpointError, match="15 steps would be lost"):
            checkpointer.restore(abstract(make_state(0)), max_lost_steps=14)
        restored = checkpointer.restore(abstract(make_state(0)), max_lost_steps=15)
    assert (restored.step, restored.lost_steps) == (5, 15)
    assert "Using step 5 instead, 15 steps earlier." in caplog.text


def test_damaged_steps_are_renamed_when_their_loss_is_accepted(tmp_path):
    save_steps(tmp_path, [0, 10, 20])
    damage(tmp_path, 10, 20)
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        state = abstract(make_state(0))
        assert checkpointer.restore(state, max_lost_steps=None).step == 0
        checkpointer.save(5, make_state(5), {})
    # They are in nobody's way: the next start goes on from step 5.
    assert restore(tmp_path).step == 5
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "0", "10.damaged-1", "20.damaged-1", "5"]


def test_step_that_cannot_be_read_is_an_error_of_one_line(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])

    def too_many_files(*args, **kwargs):
        raise ValueError("Error opening: Too many open files [a='b']\nmore")

    monkeypatch.setattr(stored_arrays, "read", too_many_files)
    with pytest.raises(manifests.CheckpointError) as error:
        restore(tmp_path)
    reason = "1 could not be read: Error opening: Too many open files."
    assert str(error.value).endswith(reason)


def test_a_save_that_failed_is_noticed_without_waiting_for_the_next(tmp_path):
    state = {"params": {"w": jnp.asarray(np.random.default_rng(0).normal(size=90_000))}}
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.check()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            checkpointer.save(2, state, {})
            with pytest.raises(checkpointing.SaveError, match=r"step 2 was not saved"):
                while True:
                    checkpointer.check()
                    time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        checkpointer.check()  # Raised once.
        checkpointer.save(3, state, {})
    assert restore(tmp_path, like=state).step == 3


def test_a_damaged_step_does_not_count_as_kept_and_is_written_anew(tmp_path):
    save_steps(tmp_path, [10, 20, 30])
    (tmp_path / "30" / "_METADATA").write_text("")
    with checkpointing.Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(abstract(make_state(0))).step == 20
        checkpointer.save(25, make_state(25), {})
    reader = checkpointing.Checkpointer(tmp_path, read_only=True)
    assert reader.steps() == [20, 25, 30]
    with checkpointing.Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(abstract(make_state(0))).step == 25
        checkpointer.save(30, make_state(30), {})
    assert reader.steps() == [25, 30]
    assert restore(tmp_path).step == 30


def test_a_state_moves_between_meshes(tmp_path):
    save_steps(tmp_path / "plain", [6])
    eight, grid, one = make_mesh(8, 1), make_mesh(4, 2), make_mesh(1, 1)
    with checkpointing.Checkpointer(tmp_path / "eight") as checkpointer:
        checkpointer.save(6, make_state(6, eight), {})
    with checkpointing.Checkpointer(tmp_path / "grid") as checkpointer:
        on_grid = restore(tmp_path / "eight", like=make_state(0, grid)).state
        assert on_grid["params"]["encoder"]["layers"]["wi"].sharding.mesh == grid
        checkpointer.save(6, on_grid, {})
    on_one = restore(tmp_path / "grid", like=make_state(0, one)).state
    assert len(on_one["params"]["scale"].sharding.device_set) == 1
    assert_bit_equal(on_one, make_state(6))
    assert_bit_equal(restore(tmp_path / "plain", like=on_grid).state, make_state(6))


def test_save_dtype_holds_on_disk_for_parameters_only(tmp_path):
    state = make_state(9)
    save_steps(tmp_path / "full", [9])
    save_steps(tmp_path / "half", [9], save_dtype="bfloat16")
    stored = read_arrays(tmp_path / "half/9")
    assert stored["params/encoder/layers/wi"].dtype == jnp.bfloat16
    assert stored["step"].dtype == jnp.int32
    assert stored["opt_state/1/0/mu/scale"].dtype == jnp.float32
    restored = restore(tmp_path / "half").state
    assert restore(tmp_path / "half").metadata == {"next_row": 99}
    wanted = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), state["params"]
    )
    assert_bit_equal(restored["params"], wanted)
    assert_bit_equal(restored["opt_state"], state["opt_state"])


def test_arrays_that_differ_are_listed_on_both_sides(tmp_path):
    save_steps(tmp_path, [1])
    other = make_state(1)
    other["params"]["decoder"] = {"wo": jnp.zeros((2, 3))}
    del other["params"]["encoder"]["half"]
    other["params"]["scale"] = jnp.zeros((9,))
    other["step"] = jnp.float32(1)
    with pytest.raises(stored_arrays.MismatchError) as caught:
        restore(tmp_path, like=other)
    message = str(caught.value)
    assert "- params/decoder/wo float32[2, 3]" in message
    assert "+ params/encoder/half bfloat16[16]" in message
    assert "! params/scale: model float32[9], checkpoint float32[7]" in message
    assert "! step: model float32[], checkpoint int32[]" in message


def test_a_full_disk_loses_only_the_step_that_is_named(tmp_path):
    state = {"params": {"w": jnp.asarray(np.random.default_rng(0).normal(size=90_000))}}
    checkpointer = checkpointing.Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        checkpointer.save(2, state, {})
        with pytest.raises(checkpointing.SaveError, match=r"step 2.*good step: 1"):
            checkpointer.save(3, state, {})
        assert checkpointer.steps() == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [".lock", "1"]
    checkpointer.save(3, state, {})
    checkpointer.close()
    assert restore(tmp_path, like=state).step == 3


def test_a_save_that_fails_in_two_places_is_told_once(tmp_path, monkeypatch):
    errors = [OSError(28, "No space left on device"), ValueError("Failed to write")]
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, make_state(2), {})
        finish = checkpointer._writer.wait_until_finished

        def wait_until_finished():
            finish()
            if errors:
                raise errors.pop(0)

        monkeypatch.setattr(
            checkpointer._writer, "wait_until_finished", wait_until_finished
        )
        with pytest.raises(checkpointing.SaveError, match="step 2 was not saved"):
            checkpointer.wait()
        checkpointer.wait()


@pytest.mark.parametrize(("times", "left"), [(2, False), (99, True)])
def test_failed_save_that_is_still_written_to_is_removed_when_it_can_be(
    tmp_path, monkeypatch, times, left
):
    failures = [OSError(39, "Directory not empty")] * times
    remove = writing.remove

    def remove_while_written(path):
        if failures:
            raise failures.pop()
        remove(path)

    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, make_state(2), {})
        checkpointer._writer.wait_until_finished()
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
        monkeypatch.setattr(checkpointing.writing, "remove", remove_while_written)
        monkeypatch.setattr(checkpointing.time, "sleep", lambda seconds: None)
        error = checkpointer._lost(OSError(28, "No space left on device"))
    assert isinstance(error, checkpointing.SaveError) and error.step == 2
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists() == left


def test_folder_of_a_failed_save_that_comes_back_is_removed_later(tmp_path):
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, make_state(2), {})
        checkpointer._writer.wait_until_finished()
        checkpointer._lost(OSError(28, "No space left on device"))
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
        checkpointer.save(3, make_state(3), {})
    assert not (tmp_path / "2.orbax-checkpoint-tmp").exists()


def test_error_of_a_save_that_seemed_complete_is_told_without_its_number(
    tmp_path, monkeypatch
):
    def late_error(writer):
        raise OSError(28, "No space left on device")

    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        checkpointer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.AsyncCheckpointer, "check_for_errors", late_error)
            with pytest.raises(checkpointing.SaveError) as error:
                checkpointer.check()
    assert str(error.value) == (
        f"{tmp_path}: a step that seemed complete was not saved "
        "([Errno 28] No space left on device). Last good step: 1."
    )
    assert (error.value.step, error.value.last_good) == (-1, 1)


def test_a_full_disk_prints_no_traceback_for_each_array(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    weights = np.random.default_rng(0).normal(size=(40, 200, 200))
    state = {"params": {f"w{n}": jnp.asarray(w) for n, w in enumerate(weights)}}
    with checkpointing.Checkpointer(tmp_path) as checkpointer:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            checkpointer.save(2, state, {})
            with pytest.raises(checkpointing.SaveError):
                checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not printed


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    first = checkpointing.Checkpointer(tmp_path)
    with pytest.raises(manifests.CheckpointError, match=str(os.getpid())):
        checkpointing.Checkpointer(tmp_path)
    first.close()
    checkpointing.Checkpointer(tmp_path).close()


def test_what_a_killed_run_left_half_done_is_removed_at_start(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "3.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (tmp_path / "1" / manifests._DELETING).touch()
    (tmp_path / "notes").mkdir()
    checkpointing.Checkpointer(tmp_path).close()
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "2", "notes"}


def test_a_read_only_checkpointer_leaves_a_running_save_alone(tmp_path):
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    reader = checkpointing.Checkpointer(tmp_path, read_only=True)
    assert reader.restore({}) is None
    with pytest.raises(ValueError, match="read-only"):
        reader.save(1, {}, {})
    assert (tmp_path / "3.orbax-checkpoint-tmp").is_dir()


def kill_savers(tmp_path, kills):
    """Kills savers at random moments; each goes on where the last one was."""
    rng = random.Random(1)
    log = []
    for _ in range(kills):
        saver = subprocess.Popen(
            [sys.executable, ROOT / "tests/drills/save_forever.py", tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        # In the midst of its second to fourth save, or just after.
        begun = [saver.stdout.readline() for _ in range(rng.randrange(2, 5))]
        time.sleep(rng.uniform(0, 0.06))
        os.kill(saver.pid, signal.SIGKILL)
        begun = int([*begun, *saver.stdout.read().splitlines()][-1].split()[1])
        saver.wait()
        restored = restore(tmp_path)
        found = -1 if restored is None else restored.step
        if restored is not None:
            assert_bit_equal(restored.state, make_state(found))
        log.append((begun, found))
    return log


def assert_none_lost(log):
    for begun, found in log:
        # A save begins only after the one before it is committed.
        assert begun - 1 <= found <= begun, log
    assert log[-1][1] > 0


def test_a_saver_killed_at_any_moment_leaves_its_last_committed_step(tmp_path):
    assert_none_lost(kill_savers(tmp_path, kills=2))


@pytest.mark.slow
def test_a_saver_killed_thirty_times_leaves_its_last_committed_step(tmp_path):
    log = kill_savers(tmp_path, kills=30)
    print("\nsave begun, step restored:", log)
    assert_none_lost(log)
