"""Where checkpoints go: one writer, any file system, any way to write the path."""

import errno
import fcntl
import os

import numpy as np
import pytest

from prottrans_jax.checkpoints import checkpointing, manifests, stored_steps
from prottrans_jax.files import locks, paths

STATE = {"params": {"scale": np.arange(3.0)}}


def test_a_second_run_is_told_who_writes_there_and_since_when(tmp_path):
    with checkpointing.Checkpointer(tmp_path / "steps"):
        with pytest.raises(manifests.CheckpointError) as error:
            checkpointing.Checkpointer(tmp_path / "steps")
    message = str(error.value)
    assert f"{tmp_path}/steps is being written by process {os.getpid()} on " in message
    assert " since 20" in message and "another model_dir" in message
    with checkpointing.Checkpointer(tmp_path / "steps"):
        pass  # Closed: free again.


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_without_file_locks_steps_are_saved_with_a_warning(
    tmp_path, monkeypatch, caplog, name
):
    def flock(descriptor, operation):
        raise OSError(getattr(errno, name), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with checkpointing.Checkpointer(tmp_path) as saver:
        saver.save(0, STATE, {})
        saver.wait()
        assert saver.steps() == [0]
    assert "does not lock files" in caplog.text


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(manifests.CheckpointError, match="cannot be written") as error:
        checkpointing.Checkpointer(tmp_path / "file" / "steps")
    assert "\n" not in str(error.value)


def test_a_lock_file_of_the_users_stays(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(locks.NotALockError, match="in the way"):
        checkpointing.Checkpointer(tmp_path)
    assert (tmp_path / ".lock").read_text() == "mine"


def test_tilde_is_home_and_other_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with checkpointing.Checkpointer("~/run/checkpoints") as saver:
        saver.save(0, STATE, {})
    directory, step = stored_steps.locate("~/run")
    assert (str(directory), step) == (f"{tmp_path}/run/checkpoints", None)
    for use in (checkpointing.Checkpointer, stored_steps.locate):
        with pytest.raises(paths.PathError, match="gs:// and s3://"):
            use("hdfs://host/run")
