"""Shards of a bucket, copied to a folder of this machine of bounded size.

A batch needs some fifty records that are random over all shards, and every epoch reads
each record once. So whole shards are fetched and kept: with room for all of them each
is fetched once, in order and in the background, while the records of the first batches
are fetched first. Single records would need one request each (tens of milliseconds, and
a whole compressed group of 64) in every epoch. With less room than a split needs, the
shards used least recently are deleted, and most batches wait for some that must be
fetched again: this works, but slowly, and is logged as a warning.

Shards are named by their SHA-256 and checked against it when they are fetched, so any
number of runs and processes may share the folder, also for several data sets. Later
damage is found by the checksums that array_record verifies at every read; the shard is
then fetched again. Settings, in the environment:

  PROTTRANS_DATA_CACHE       the folder; default: prottrans_jax/records in the cache
                             folder of the user ($XDG_CACHE_HOME, or ~/.cache)
  PROTTRANS_DATA_CACHE_GIB   its bound; default: what it holds now, and nine tenths of
                             what is free on its disk
"""

from collections.abc import Callable, Iterable
import concurrent.futures
import contextlib
import math
import os
import pathlib
import queue
import random
import shutil
import threading
import time
from typing import NamedTuple
import weakref

from absl import logging

from prottrans_jax.data.records import manifest as manifest_lib
from prottrans_jax.files import buckets, digests, paths, writing

FOLDER = "PROTTRANS_DATA_CACHE"
GIB = "PROTTRANS_DATA_CACHE_GIB"
# Fetches ahead at once. One connection to a bucket carries some 50 MB/s.
_PARALLEL = 8
# Of one file, each with the tries of `files.gcs` or `files.s3`.
_TRIES = 3
_PAUSE_S = 2.0
# A read that waits for longer is logged.
_SLOW_S = 10.0
_SHARE_OF_FREE = 0.9
# Unfinished files that are older were left by a kill.
_LEFT_BEHIND_S = 3600.0


class File(NamedTuple):
    """A file of a prepared folder in a bucket.

    Attributes:
      place: in the bucket.
      num_bytes: its size.
      sha256: of its content.
    """

    place: paths.Place
    num_bytes: int
    sha256: str


class ShardCache:
    """Copies of the shards of one split.

    Args:
      shards: all shards of the split.
      on_delete: called with the number of a shard whose copy is deleted or replaced;
        its reader must be closed, or the disk space stays in use.

    Raises:
      ValueError: a setting is invalid, or the folder cannot be written.
    """

    def __init__(self, shards: Iterable[File], on_delete: Callable[[int], None]):
        self._shards = list(shards)
        self._folder = cache_folder()
        self._limit = _limit(self._folder)
        self._on_delete = on_delete
        self._numbers = {shard.sha256: i for i, shard in enumerate(self._shards)}
        self._forget()

    def path(self, number: int) -> pathlib.Path:
        """The copy of a shard, fetched if it is not there.

        Another thread or process may delete it before it is opened.

        Raises:
          DamageError: the content is wrong, after several tries.
          OSError: the bucket or the disk failed, after several tries.
        """
        if self._process != os.getpid():
            self._forget()
        self._read_ahead()
        path = self._path(number)
        try:
            os.utime(path)  # Orders deletions.
            return path
        except FileNotFoundError:
            pass
        started = time.monotonic()
        self._start(number).result()
        if (waited_s := time.monotonic() - started) > _SLOW_S:
            place = self._shards[number].place
            logging.warning("Waited %.0f s for %s.", waited_s, place)
        return path

    def discard(self, number: int) -> bool:
        """Deletes a damaged copy; returns whether there was one."""
        try:
            self._path(number).unlink()
        except FileNotFoundError:
            return False
        self._on_delete(number)
        return True

    def _forget(self) -> None:
        """Forgets fetches in progress; a forked process has none of the threads."""
        self._process = os.getpid()
        self._lock = threading.Condition()
        self._running: dict[int, concurrent.futures.Future] = {}
        self._is_ahead = False

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / _name(self._shards[number])

    def _read_ahead(self) -> None:
        """At the first call starts to fetch all shards, as far as there is room."""
        with self._lock:
            if self._is_ahead:
                return
            self._is_ahead = True
        total = sum(shard.num_bytes for shard in self._shards)
        if total > self._limit:
            logging.warning(
                "The %d shards of %s need %.1f GiB, and the cache %s is limited to "
                "%.1f: shards will be fetched again and again. Set %s to more, or %s "
                "to a folder on a larger disk.",
                *(len(self._shards), self._shards[0].place.parent, total / 2**30),
                *(self._folder, self._limit / 2**30, GIB, FOLDER),
            )
            return
        missing = [
            number
            for number in range(len(self._shards))
            if not self._path(number).exists()
        ]
        if missing:
            logging.info(
                "Fetching %d shards of %s to %s in the background.",
                *(len(missing), self._shards[0].place.parent, self._folder),
            )
        numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in missing:
            numbers.put(number)
        for _ in range(min(_PARALLEL, len(missing))):
            # Daemons: the end of the process does not wait for them.
            threading.Thread(
                target=_fetch_all,
                args=(weakref.ref(self), numbers),
                name="fetch",
                daemon=True,
            ).start()

    def _start(self, number: int) -> concurrent.futures.Future:
        """The fetch of a shard, which may be running already."""
        with self._lock:
            future = self._running.get(number)
            if future is not None:
                return future
            # With more, they would be deleted before they are read.
            most = self._limit / 2 - self._shards[number].num_bytes
            self._lock.wait_for(
                lambda: number in self._running or self._arriving() <= max(most, 0)
            )
            if number in self._running:
                return self._running[number]
            future = self._running[number] = concurrent.futures.Future()
        # In the thread that needs it, before those that wait in the queue.
        try:
            if not self._path(number).exists():
                self._make_room()
                fetch(self._shards[number], self._folder)
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                del self._running[number]
                self._lock.notify_all()
            self._make_room()
        return future

    def _arriving(self) -> int:
        """Bytes of the shards that are being fetched."""
        return sum(self._shards[number].num_bytes for number in self._running)

    def _make_room(self) -> None:
        """Deletes the shards that were used least recently, for those that arrive."""
        with self._lock:
            files = []
            oldest = time.time() - _LEFT_BEHIND_S
            for entry in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if status.st_mtime > oldest and writing.is_temporary(entry.name):
                        continue
                    files.append((status.st_mtime, status.st_size, entry.name))
            used = self._arriving() + sum(size for _, size, _ in files)
            for _, size, name in sorted(files):
                if used <= self._limit:
                    return
                used -= size
                (self._folder / name).unlink(missing_ok=True)
                number = self._numbers.get(name.partition(".")[0])
                if number is not None:
                    self._on_delete(number)


def _fetch_all(
    cache: "weakref.ref[ShardCache]", numbers: "queue.SimpleQueue[int]"
) -> None:
    """Fetches shards while their cache is in use; who needs one sees its error."""
    while (alive := cache()) is not None:
        try:
            number = numbers.get_nowait()
        except queue.Empty:
            return
        with contextlib.suppress(OSError, ValueError):
            alive._start(number).result()
        del alive


def fetch(file: File, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Path of a verified copy of a file, which is fetched if it is not there.

    Args:
      file: in a bucket.
      folder: the cache; None: as set in the environment.

    Raises:
      DamageError: the content is wrong, after several tries.
      OSError: the bucket or the disk failed, after several tries.
    """
    folder = cache_folder() if folder is None else folder
    path = folder / _name(file)
    if path.exists():
        return path
    store, name = buckets.filesystem(file.place)
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            with writing.new_file(path) as temporary:
                store.get_file(name, str(temporary))
                digest = digests.read(temporary)
                if digest.hexdigest() == file.sha256:
                    return path
                raise manifest_lib.DamageError(
                    f"{file.place} is damaged: the SHA-256 of its {digest.num_bytes:,} "
                    f"bytes is {digest.hexdigest()}, the manifest says {file.sha256} "
                    f"({file.num_bytes:,} bytes)"
                )
        except (manifest_lib.DamageError, OSError) as error:
            is_final = isinstance(error, FileNotFoundError | PermissionError)
            if last and isinstance(error, manifest_lib.DamageError):
                raise manifest_lib.DamageError(
                    f"{error}; {_TRIES} tries. {manifest_lib.REMEDY}."
                ) from None
            if last or is_final or writing.no_room(error) is not None:
                raise
            logging.warning("%s; trying again.", _shown(error))
        time.sleep(_PAUSE_S * random.uniform(0.5, 1.5))
    raise AssertionError  # The last try returns or raises.


def _shown(error: Exception) -> str:
    return paths.explain(error) if isinstance(error, OSError) else str(error)


def _name(file: File) -> str:
    return file.sha256 + pathlib.PurePosixPath(file.place.name).suffix


def cache_folder() -> pathlib.Path:
    """The folder of copies, which is created.

    Raises:
      ValueError: it cannot be created.
    """
    folder = paths.of_environment(FOLDER)
    if folder is None:
        folder = paths.cache_home() / "prottrans_jax" / "records"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}, the cache of records from buckets, cannot be created: "
            f"{error.strerror}. Set {FOLDER} to another folder."
        ) from error
    return folder


def _limit(folder: pathlib.Path) -> float:
    """Bytes that the cache may hold."""
    text = os.environ.get(GIB)
    if text:
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not limit > 0:
            raise ValueError(f"{GIB}={text!r}: it must be a positive number of GiB.")
        return limit * 2**30
    held = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # Deleted by another process.
            held += entry.stat().st_size
    return held + _SHARE_OF_FREE * shutil.disk_usage(folder).free
