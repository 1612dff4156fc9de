"""Saves and logs that fail: retried, reported, and the run goes on where possible."""

import errno
import pathlib
import resource
import threading

import pytest

from cases import runs, trainer_cases
from prottrans_jax.checkpoints import checkpointing


class _FullDisk:
    """A writer whose disk is full until a step."""

    path = "elsewhere/log"

    def __init__(self, until, error):
        self._until, self._error, self.steps = until, error, []
        self._is_full = False

    def write_scalars(self, step, scalars):
        self._is_full = step < self._until
        self.flush()
        self.steps.append(step)

    def flush(self):
        if self._is_full:  # What was kept cannot be written yet.
            raise self._error


class _DiskFull:
    """A writer that lets no file grow from a step on, until another one.

    It waits for saves to end, so that earlier ones are whole and later ones fail while
    the disk is full. The limit leaves room for the log, not for the arrays of a
    checkpoint.
    """

    _ROOM = 16_000

    def __init__(self, first, last):
        self._full = range(first, last + 1)
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_scalars(self, step, scalars):
        if step >= self._full.start:
            for thread in threading.enumerate():
                if thread.name == "async_save":
                    thread.join()
        size = self._ROOM if step in self._full else self._limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self._limits[1]))

    def close(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def _saves_on_a_full_disk(tmp_path, last, **changes):
    """Arguments of a run whose disk is full as step 3 is saved, up to step `last`."""
    return trainer_cases.arguments(
        tmp_path,
        eval_data={},
        checkpoints_period=3,
        logs_period=1,
        total_steps=9,
        writers=lambda: (_DiskFull(3, last),),
        **changes,
    )


def test_failed_save_is_noticed_at_the_next_step_and_made_again(tmp_path, caplog):
    whole = trainer_cases.arguments(
        tmp_path / "whole",
        eval_data={},
        checkpoints_period=3,
        logs_period=1,
        total_steps=9,
    )
    runs.train(**whole)
    arguments = _saves_on_a_full_disk(tmp_path / "full", 3, checkpoints_keep=9)
    runs.train(**arguments)
    directory = pathlib.Path(arguments["model_dir"]) / "checkpoints"
    steps = sorted(int(path.name) for path in directory.iterdir() if path.is_dir())
    assert steps == [0, 5, 6, 9]
    assert "step 3 was not saved" in caplog.text
    assert "Saving step 5 instead" in caplog.text
    trainer_cases.assert_same_bits(
        trainer_cases.final_state(whole), trainer_cases.final_state(arguments)
    )
    assert trainer_cases.log(arguments) == trainer_cases.log(whole)


@pytest.mark.parametrize(("policy", "lost"), [("stop", 3), ("retry", 5)])
def test_run_stops_at_once_when_saves_keep_failing(tmp_path, policy, lost):
    arguments = _saves_on_a_full_disk(tmp_path, 99, checkpoints_on_save_error=policy)
    with pytest.raises(checkpointing.SaveError) as error:
        runs.train(**arguments)
    assert error.value.step == lost and error.value.last_good == 0
    # Step 5 noticed step 3, and step 7 step 5.
    assert len(trainer_cases.log(arguments)) == lost + 1


def test_unknown_policy_for_failed_saves_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Checkpoints\.on_save_error='again': choose"):
        runs.train(
            **trainer_cases.arguments(tmp_path, checkpoints_on_save_error="again")
        )


def test_log_on_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    writer = _FullDisk(99, OSError(errno.ENOSPC, "No space left on device"))
    arguments = trainer_cases.arguments(tmp_path, logs_period=1) | {
        "writers": lambda: (writer,)
    }
    summary = runs.train(**arguments)
    assert summary.step == 6
    problem = (
        "elsewhere/log is not complete: step 1 and later could not be written "
        "(No space left on device)."
    )
    # Said once when it begins, and at the end.
    assert caplog.text.count("No space left") == 2
    assert list(summary.problems) == [problem]


def test_log_is_complete_again_when_the_disk_has_room(tmp_path, caplog):
    writer = _FullDisk(3, OSError(errno.ENOSPC, "No space left on device"))
    arguments = trainer_cases.arguments(tmp_path, logs_period=1) | {
        "writers": lambda: (writer,)
    }
    assert not runs.train(**arguments).problems
    assert "elsewhere/log is complete again" in caplog.text


def test_writer_that_fails_in_another_way_is_left_out(tmp_path):
    writer = _FullDisk(3, RuntimeError("RESOURCE_EXHAUSTED: no space\nmore"))
    arguments = trainer_cases.arguments(tmp_path, logs_period=1) | {
        "writers": lambda: (writer,)
    }
    (problem,) = runs.train(**arguments).problems
    assert problem.endswith("(RuntimeError: RESOURCE_EXHAUSTED: no space).")
    assert writer.steps == []
