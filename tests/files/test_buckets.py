"""Folders of this machine and in buckets: one behaviour; a storage that fails."""

import errno
import hashlib
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest

from cases import stores
from prottrans_jax.files import (
    appending,
    buckets,
    digests,
    folders,
    leases,
    locks,
    ownership,
    paths,
    writing,
)

TESTS = pathlib.Path(__file__).resolve().parents[1]


def place(text):
    return paths.place(text, "--output")


def test_a_small_file_is_written_read_hashed_and_removed(store):
    path = place(store) / "a" / "b.json"
    path.parent.mkdir(parents=True)
    writing.write_synced(path, b"one")
    writing.write_synced(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.is_file() and path.parent.is_dir() and place(store).is_dir()
    digest = digests.read(path)
    assert digest.num_bytes == 6
    assert digest.hexdigest() == hashlib.sha256(b"second").hexdigest()
    writing.remove(path)
    assert not folders.exists(path)
    writing.remove(path)  # Nothing to do.


def test_content_of_a_folder_is_listed_and_removed(store):
    root = place(store)
    assert folders.children(root) == [] and folders.files_below(root) == []
    for name in ("x/1", "x/y/2", "3"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")
    assert folders.files_below(root) == ["3", "x/1", "x/y/2"]
    assert [path.name for path in folders.children(root)] == ["3", "x"]
    # What another writer adds is seen at once.
    (root / "4").write_bytes(b"-")
    assert len(folders.children(root)) == 3
    writing.remove(root / "x")
    assert folders.files_below(root) == ["3", "4"]


def test_a_new_file_appears_complete_or_not_at_all(store):
    path = place(store) / "x.h5"
    path.parent.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        with writing.new_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError
    assert folders.children(path.parent) == []
    with writing.new_file(path) as temporary:
        assert temporary.suffix == ".h5"
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert folders.files_below(path.parent) == ["x.h5"]


def test_a_new_folder_appears_complete_and_replaces_nothing(store):
    target = place(store)
    with pytest.raises(ZeroDivisionError):
        with writing.new_folder(target) as folder:
            (folder / "weights").write_bytes(b"half")
            raise ZeroDivisionError
    assert not target.exists()
    with writing.new_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(b"whole")
        (folder / "config").write_bytes(b"-")
    assert folders.files_below(target) == ["config", "deep/weights"]
    with pytest.raises(FileExistsError, match="is not empty"):
        with writing.new_folder(target):
            pass


def test_files_and_folders_are_set_aside_under_free_numbers(store):
    root = place(store)
    for number in (1, 2):
        (root / "step").mkdir(parents=True)
        (root / "step" / "data").write_bytes(b"%d" % number)
        renamed = writing.set_aside(root / "step", "step.damaged-{}")
        assert renamed.name == f"step.damaged-{number}"
    assert folders.files_below(root) == ["step.damaged-1/data", "step.damaged-2/data"]
    assert (root / "step.damaged-2" / "data").read_bytes() == b"2"
    copy = appending.set_aside(root / "step.damaged-1" / "data", "copy-{}")
    assert copy.read_bytes() == b"1" and (root / "step.damaged-1/data").exists()


def test_records_are_appended_after_existing_ones(store):
    path = place(store) / "log"
    path.parent.mkdir(parents=True)
    for number in (1, 2):
        log = appending.open_log(path)
        log.append(b"%d\n" % number)
        log.append(b"x\n")
        log.append(b"y\n", replacing=b"x\n")
        log.flush()
        assert path.read_bytes().endswith(b"%d\ny\n" % number)
        log.close()
    appending.append_line(path, "last")
    assert path.read_bytes() == b"1\ny\n2\ny\nlast\n"
    appending.replace_content(path, path.read_bytes(), b"1\n")
    assert path.read_bytes() == b"1\n"


def test_a_log_in_a_bucket_is_uploaded_every_period(bucket):
    path = place(bucket) / "log"
    log = appending.GrowingObject(path, period_s=0.2)
    log.append(b"one\n")
    assert not path.exists()
    time.sleep(0.3)
    log.append(b"two\n")
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.read_bytes() == b"one\ntwo\n"
    log.close()


def test_files_of_others_are_not_replaced(store):
    root = place(store)
    root.mkdir(parents=True)
    ownership.refuse_foreign_entries(root / "none", lambda name: False)
    ownership.refuse_foreign_file(root / "none", b"{")
    (root / "thesis").write_bytes(b"text")
    with pytest.raises(ownership.ForeignError, match="thesis"):
        ownership.refuse_foreign_entries(root, lambda name: name == "ours")
    with pytest.raises(ownership.ForeignError, match="not made by this program"):
        ownership.refuse_foreign_file(root / "thesis", b"{")
    with pytest.raises(ownership.ForeignError, match="is a file"):
        ownership.refuse_foreign_entries(root / "thesis", lambda name: True)
    with pytest.raises(ownership.ForeignError, match="would be overwritten"):
        ownership.refuse_same([root / "thesis"], [root / "thesis"])


def test_a_copy_on_this_machine_ends_with_its_block(store):
    root = place(store)
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "x").write_bytes(b"abc")
    with folders.local_copy(root) as copy:
        assert (copy / "deep" / "x").read_bytes() == b"abc"
    with folders.local_copy(root / "deep" / "x") as copy:
        assert copy.read_bytes() == b"abc" and copy.name == "x"
    assert copy.exists() == (not store.startswith(("gs:", "s3:")))
    assert (root / "deep" / "x").exists()


def test_a_missing_object_is_a_missing_file(store):
    with pytest.raises(FileNotFoundError):
        (place(store) / "none").read_bytes()
    with pytest.raises(FileNotFoundError):
        digests.read(place(store) / "none")


def test_a_bucket_that_does_not_exist_is_named_and_not_created(bucket):
    scheme = bucket.partition("://")[0]
    root = place(f"{scheme}://no-such-bucket/x")
    root.mkdir(parents=True, exist_ok=True)
    for write in (
        lambda: writing.write_synced(root / "y", b"x"),
        lambda: locks.acquire(root / ".lock", output=root, advice=""),
    ):
        with pytest.raises(FileNotFoundError, match="no such bucket") as error:
            write()
        assert error.value.filename.startswith(f"{scheme}://no-such-bucket/x/")


# ---------------------------------------------------------------- One writer

_HOLDER = """
import sys, time
from prottrans_jax.files import locks, paths
path = paths.place(sys.argv[1], "-o")
lock = locks.acquire(path, output="x", advice="")
print(flush=True)
time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(store):
    path = place(store) / "x.lock"
    command = [sys.executable, "-c", _HOLDER, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(locks.LockedError) as error:
            locks.acquire(path, output="THE OUTPUT", advice="Choose another.")
    finally:
        holder.kill()
        holder.wait()
    said = str(error.value)
    assert said.startswith(f"THE OUTPUT is being written by process {holder.pid} on ")
    assert " since 20" in said and "Choose another." in said
    if not isinstance(path, type(paths.local("x", "-o"))):
        assert f"delete {path}" in said
    with locks.acquire(path, output="THE OUTPUT", advice="") as lock:
        lock.check()
    locks.acquire(path, output="THE OUTPUT", advice="").release(remove=True)
    assert not path.exists()


def test_a_file_of_the_users_is_no_lock_and_stays(store):
    path = place(store) / "x.lock"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"poetry\n")
    with pytest.raises(locks.NotALockError, match=r"x\.lock is in the way"):
        locks.acquire(path, output="x", advice="")
    assert path.read_bytes() == b"poetry\n"


def of_another_machine(path):
    """Changes the lease as if another machine had written it."""
    content = json.loads(path.read_bytes())
    content |= {"machine": "another", "host": "far", "token": "other"}
    path.write_bytes(json.dumps(content).encode())


def test_a_lease_of_another_machine_is_taken_only_when_it_expires(bucket):
    path = place(bucket) / "x.lock"
    dead = leases.Lease(path, renew_s=60, expires_s=1.0)
    of_another_machine(path)
    start = time.monotonic()
    lease = leases.Lease(path, renew_s=0.1, expires_s=1.0)
    assert time.monotonic() - start >= 1.0
    # The old holder, if it was only paused, finds out before it commits anything.
    with pytest.raises(leases.LostError, match="lost the lock"):
        dead.check()
    lease.check()
    dead.release()  # Leaves the lease of the new holder.
    lease.check()
    lease.release()
    assert not path.exists()


def test_a_lease_that_is_renewed_on_another_machine_is_not_taken(bucket, monkeypatch):
    path = place(bucket) / "x.lock"
    with monkeypatch.context() as patch:
        boots = iter(["another machine"])
        patch.setattr(leases, "machine", lambda: next(boots))
        holder = leases.Lease(path, renew_s=0.2, expires_s=5.0)
    start = time.monotonic()
    with pytest.raises(leases.HeldError):
        leases.Lease(path)
    assert time.monotonic() - start < 4
    holder.release()


def test_a_log_is_not_overwritten_by_a_process_that_lost_the_lock(bucket):
    path, lock_path = place(bucket) / "log", place(bucket) / "x.lock"
    lock = locks.acquire(lock_path, output="x", advice="")
    log = appending.open_log(path, lock)
    log.append(b"old\n")
    of_another_machine(lock_path)
    path.write_bytes(b"new\n")
    # The last renewal was a moment ago, so only the upload itself can tell.
    with pytest.raises(leases.LostError, match="lost the lock to process"):
        log.flush()
    with pytest.raises(leases.LostError):
        lock.check(math.inf)
    assert path.read_bytes() == b"new\n"


def test_a_holder_of_the_lock_replaces_what_a_paused_process_uploaded(bucket):
    path = place(bucket) / "log"
    path.write_bytes(b"one\n")
    with locks.acquire(place(bucket) / "x.lock", output="x", advice="") as lock:
        log = appending.open_log(path, lock)
        path.write_bytes(b"late\n")
        log.append(b"two\n")
        log.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_renewal_is_requested_only_when_the_last_one_is_old(bucket, faults):
    lease = leases.Lease(place(bucket) / "x.lock", renew_s=60)
    faults.requests.clear()
    lease.check(leases.RECENT_S)
    assert faults.requests == []
    lease.check()
    assert [m for m, _ in faults.requests] in (["POST"], ["PUT"])
    lease.release()


def test_of_many_writers_that_start_at_once_one_gets_the_lease(bucket):
    path = place(bucket) / "x.lock"
    command = [sys.executable, "-c", _HOLDER, str(path)]
    others = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    try:
        won = [other for other in others if other.stdout.readline()]
        assert len(won) == 1
    finally:
        for other in others:
            other.kill()
            other.wait()


# -------------------------------------------------------- A storage that fails


def test_failed_and_truncated_answers_are_tried_again(bucket, faults):
    path = place(bucket) / "data"
    content = b"0123456789" * 1000
    lost = faults.add(stores.Fault(lambda m, p: m != "GET" and "data" in p, status=503))
    writing.write_synced(path, content)
    assert lost.seen == 1
    cut = faults.add(stores.Fault(lambda m, p: m == "GET" and "data" in p, keep=100))
    assert path.read_bytes() == content
    assert cut.seen == 1
    assert digests.read(path).num_bytes == len(content)


def test_a_write_whose_answer_is_lost_keeps_the_lease(bucket, faults):
    lease = leases.Lease(place(bucket) / "x.lock")
    lost = faults.add(
        stores.Fault(lambda m, p: m in ("POST", "PUT"), status=503, after=True)
    )
    lease.check()
    assert lost.seen == 1
    lease.check()
    lease.release()


@pytest.mark.slow  # gcsfs pauses for half a minute in all.
def test_after_the_last_try_the_error_names_object_tries_and_status(bucket, faults):
    path = place(bucket) / "data"
    faults.add(stores.Fault(lambda *_: True, times=1000, status=503))
    with pytest.raises(OSError) as error:
        writing.write_synced(path, b"x")
    said = paths.explain(error.value)
    assert said.startswith(f"{path}: ")
    assert "tries" in said and "status 503" in said and "try again later" in said
    assert "\n" not in said


# ------------------------------------------------------------------- Hostile


@pytest.mark.parametrize("name", ["a/../../../outside", "a//b", "./c"])
def test_objects_whose_names_are_no_paths_below_the_folder_are_refused(
    bucket, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (place(bucket) / "fine").write_bytes(b"x")
    filesystem, folder = buckets.filesystem(place(bucket))
    listed = [f"{folder}/fine", f"{folder}/{name}"]
    monkeypatch.setattr(filesystem, "find", lambda _: listed)
    monkeypatch.setattr(
        filesystem, "get", lambda _, files, **__: [touch(file) for file in files]
    )
    with pytest.raises(paths.PathError, match="no path below") as error:
        with folders.local_copy(place(bucket)):
            pass
    assert repr(f"{folder}/{name}") in str(error.value)
    assert list(tmp_path.rglob("*")) == [tmp_path / "temporary"]


def touch(file):
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.mark.parametrize("kind", stores.BUCKETS)
@pytest.mark.parametrize("error_class", [RuntimeError, OSError])
def test_errors_do_not_show_secrets_of_urls(kind, error_class):
    stores.proxy(kind)  # Skips without its package.
    url = "https://me:password@proxy.org/b/x?X-Amz-Signature=5ec4e7&a=b"
    arguments = (f'Cannot connect to "{url}" now',)
    if error_class is OSError:
        arguments = (errno.ECONNREFUSED, *arguments)
    module = {"gs": "gcs", "s3": "s3"}[kind]
    explained = importlib.import_module(f"prottrans_jax.files.{module}")._explained
    said = str(explained(error_class(*arguments), "GET", f"{kind}://b/x"))
    assert 'Cannot connect to "https://proxy.org/b/x" now' in said
    assert "password" not in said and "5ec4e7" not in said


# ------------------------------------------------------------- The emulators

_EARLIER_USE = """
import pathlib, sys
from prottrans_jax.files import buckets, paths
buckets.filesystem(f"{sys.argv[1]}://bucket/x")

from cases import stores
place = paths.place(stores.fresh(sys.argv[1], pathlib.Path()), "-o") / "x"
proxy = stores.proxy(sys.argv[1])
proxy.clear()
place.write_bytes(b"x")
print(len(proxy.requests))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", stores.BUCKETS)
def test_file_systems_of_before_the_emulator_are_not_used(kind):
    stores.proxy(kind)  # Skips without its package.
    variables = ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL")
    environment = {k: v for k, v in os.environ.items() if k not in variables}
    done = subprocess.run(
        [sys.executable, "-c", _EARLIER_USE, kind],
        env=environment | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
