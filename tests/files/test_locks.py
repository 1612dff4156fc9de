"""The lock of an output: who holds it, what a file system without locks leads to."""

import errno
import fcntl
import gc
import json
import os
import subprocess
import sys

import pytest

from prottrans_jax.files import locks

ADVICE = "Choose another output."


def acquire(path):
    return locks.acquire(path, output=path.with_suffix(".h5"), advice=ADVICE)


def refuse(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_second_writer_is_told_who_holds_the_output(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from prottrans_jax.files import locks; "
        f"lock = locks.acquire({str(path)!r}, output='x', advice=''); "
        "print(flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        before = open_files()
        with pytest.raises(locks.LockedError) as error:
            acquire(path)
        assert open_files() == before
    finally:
        holder.kill()
        holder.wait()
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/x.h5 is being written by process ")
    assert f"process {holder.pid} on {os.uname().nodename} since 20" in message
    assert message.endswith(ADVICE)
    acquire(path).release()  # A killed holder holds nothing.


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, name):
    refuse(monkeypatch, getattr(errno, name))
    with acquire(tmp_path / "x.lock") as lock:
        assert not lock.is_exclusive
    (line,) = [record.getMessage() for record in caplog.records]
    assert "does not lock files" in line and "Run only one." in line


def test_without_locks_an_earlier_holder_is_named(tmp_path, monkeypatch, caplog):
    refuse(monkeypatch, errno.ENOLCK)
    acquire(tmp_path / "x.lock")
    acquire(tmp_path / "x.lock")
    assert f"An earlier one may still run: process {os.getpid()} on" in caplog.text


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "EIO"])
def test_other_faults_name_file_and_reason_and_leave_nothing_open(
    tmp_path, monkeypatch, name
):
    refuse(monkeypatch, getattr(errno, name))
    before = open_files()
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))) as error:
        acquire(tmp_path / "x.lock")
    assert error.value.filename == str(tmp_path / "x.lock")
    assert open_files() == before


def test_a_full_disk_names_file_and_reason(tmp_path, monkeypatch):
    def pwrite(*unused):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    before = open_files()
    with pytest.raises(OSError, match="No space left") as error:
        acquire(tmp_path / "x.lock")
    assert error.value.filename == str(tmp_path / "x.lock")
    assert open_files() == before


def test_a_file_of_the_users_is_no_lock_and_stays(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("poetry\n")
    with pytest.raises(locks.NotALockError, match=r"x\.lock is in the way"):
        acquire(path)
    assert path.read_text() == "poetry\n"


@pytest.mark.parametrize("text", ["pid 3 on h", "process 3 on h", ""])
def test_what_earlier_versions_wrote_is_a_lock_file(tmp_path, text):
    path = tmp_path / "x.lock"
    path.write_text(text)
    with acquire(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_released_lock_can_be_taken_again_and_its_file_removed(tmp_path):
    path = tmp_path / "deep" / "x.lock"
    lock = acquire(path)
    with pytest.raises(locks.LockedError):
        acquire(path)
    lock.release()
    lock.release()
    lock = acquire(path)
    lock.release(remove=True)
    assert not path.exists()
    acquire(path).release()


def test_a_lock_file_removed_by_its_holder_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    flock, calls = fcntl.flock, []

    def vanish_first(descriptor, operation):
        if not calls:
            path.unlink()  # The holder ends between our opening and our locking.
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", vanish_first)
    with acquire(path):
        assert len(calls) == 2 and path.exists()
