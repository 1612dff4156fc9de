"""Reads shards concurrently, with a bounded number of open files.

A batch needs about fifty records from as many shards. A read takes 0.1 ms on a local
disk but tens of milliseconds on a network file system, so the shards of a batch are
read concurrently, by threads that the whole process shares.
"""

import collections
from collections.abc import Callable, Hashable, Iterable
import concurrent.futures
import functools
import os
import resource
import threading
from typing import Any, Protocol

from array_record.python import array_record_module

MAX_PARALLEL_READS = 64
# Reserved for other files of the process: libraries, sockets, logs, checkpoints.
_OTHER_FILES = 256
_MIN_OPEN = 16


class Reader(Protocol):
    """Reads one shard; threads may share it."""

    def num_records(self) -> int:
        """Number of records in the shard."""

    def read(self, indices: list[int]) -> list[bytes]:
        """Records `indices`, in this order; RuntimeError if one is corrupt."""


def open_array_record(path: str) -> Reader:
    """Opens a shard for random access: no read-ahead, no threads of its own."""
    return array_record_module.ArrayRecordReader(
        path, "readahead_buffer_size:0,max_parallelism:0"
    )


def allow_open_files(count: int) -> None:
    """Raises the soft limit on open files so that `count` more fit, if allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class OpenReaders:
    """Readers by key, opened on first use; the least recently used are closed.

    Args:
      max_open: maximum number of open readers; None: as many as the limit on open files
        allows.
    """

    def __init__(self, max_open: int | None = None):
        self._max_open = max_open
        self.forget()

    def forget(self) -> None:
        """Drops all readers in a forked process, which opens its own."""
        # Reentrant: `close` may be called by the garbage collector at any moment.
        self._lock = threading.RLock()
        self._readers: collections.OrderedDict[Any, concurrent.futures.Future] = (
            collections.OrderedDict()
        )

    def get(self, key: Hashable, open_reader: Callable[[], Reader]) -> Reader:
        """The reader of `key`, opened by `open_reader` if it is not open.

        Threads that request the same reader wait for it; other readers are opened
        meanwhile. Raises the errors of `open_reader`.
        """
        with self._lock:
            future = self._readers.get(key)
            opens = future is None
            if future is None:
                future = self._readers[key] = concurrent.futures.Future()
                self._close_oldest(self._room())
            self._readers.move_to_end(key)
        if opens:
            try:
                future.set_result(self._open(open_reader))
            except BaseException as e:
                with self._lock:
                    self._readers.pop(key, None)
                future.set_exception(e)
        return future.result()

    def close(self, keys: Iterable[Hashable]) -> None:
        """Closes the readers of `keys`; a reader in use closes after its read."""
        with self._lock:
            for key in keys:
                self._readers.pop(key, None)

    def _room(self) -> int:
        if self._max_open is not None:
            return self._max_open
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(soft - _OTHER_FILES, _MIN_OPEN)

    def _close_oldest(self, room: int) -> None:
        while len(self._readers) > room:
            self._readers.popitem(last=False)

    def _open(self, open_reader: Callable[[], Reader]) -> Reader:
        try:
            return open_reader()
        except Exception as e:
            if not is_too_many_files(e):
                raise
        with self._lock:
            self._close_oldest(0)
        try:
            return open_reader()
        except Exception as e:
            if not is_too_many_files(e):
                raise
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ValueError(
                f"too many open files: {e}. The limit is {soft}; raise it with ulimit "
                "-n."
            ) from e


def is_too_many_files(error: Exception) -> bool:
    """Whether the limit on open files made an open fail."""
    return "Too many open files" in str(error)


def submit(function: Callable, *args: Any) -> concurrent.futures.Future:
    """Calls `function` on one of the reading threads; it must not call `submit`."""
    return _threads().submit(function, *args)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(MAX_PARALLEL_READS, "records")


# One per process, like the limit on open files.
OPEN = OpenReaders()
# A forked process does not inherit threads.
os.register_at_fork(after_in_child=OPEN.forget)
os.register_at_fork(after_in_child=_threads.cache_clear)
