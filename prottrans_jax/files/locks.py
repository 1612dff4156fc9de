"""A lock that prevents two processes from writing the same output.

It is advisory (flock). The kernel releases it when its process ends for any reason.
Some network file systems have no locks; there the caller continues after a warning. In
a bucket the lock is a lease; see `leases`.
"""

import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import Any, Self

from absl import logging

from prottrans_jax.files import buckets, leases, paths

# Errors of flock on file systems without locks: NFS without a lock daemon, Lustre
# without `-o flock`, some FUSE file systems.
NO_LOCKS = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
)
_HOLDER_BYTES = 4096
# First words of the lock files of earlier versions.
_EARLIER = ("pid ", "process ")


class LockedError(RuntimeError):
    """Another process writes to the same output."""


class NotALockError(ValueError):
    """The file at the path of a lock was not created by this program."""


class Lock:
    """A held lock, from `acquire`.

    Attributes:
      path: The lock file.
      is_exclusive: False where the file system has no locks.
    """

    def __init__(
        self,
        path: paths.Place,
        held: "_HeldFile | leases.Lease",
        is_exclusive: bool = True,
    ):
        self.path = path
        self.is_exclusive = is_exclusive
        self._held: _HeldFile | leases.Lease | None = held

    def check(self, max_age_s: float = 0.0) -> None:
        """Raises if the lock was lost, which is possible in a bucket.

        Args:
          max_age_s: See `leases.Lease.check`.

        Raises:
          leases.LostError: Another process has taken it, or it was released.
          OSError: A request to the bucket failed.
        """
        if self._held is None:
            raise leases.LostError(
                errno.ESTALE, "the lock was released", os.fspath(self.path)
            )
        self._held.check(max_age_s)

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock. May be called again.

        Args:
          remove: Whether to delete the lock file, too. In a bucket it is deleted in
            both cases.

        Raises:
          OSError: The file cannot be deleted, or a request to the bucket failed.
        """
        held, self._held = self._held, None
        if held is not None:
            held.release(remove=remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class _HeldFile:
    def __init__(self, path: pathlib.Path, descriptor: int):
        self._path = path
        self._descriptor = descriptor

    def check(self, max_age_s: float) -> None:
        """The kernel keeps the lock as long as the process runs."""

    def release(self, *, remove: bool) -> None:
        try:
            if remove:
                # Before the release: afterwards another process may hold it.
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)


def acquire(path: str | os.PathLike, *, output: str | os.PathLike, advice: str) -> Lock:
    """Acquires the lock of an output, or fails at once. Creates parent folders.

    Args:
      path: The lock file.
      output: The locked output, for messages.
      advice: Advice to the user if the lock is held, such as "Choose another output."

    Raises:
      LockedError: Another process holds the lock; says which and since when.
      NotALockError: This program did not create the file, which was not changed.
      OSError: The lock file cannot be written; has `filename` and `strerror`.
    """
    if buckets.is_bucket(path):
        place = buckets.path(os.fspath(path))
        try:
            return Lock(place, leases.Lease(place))
        except leases.HeldError as error:
            holder = _described(place, error.content) or "another process"
            raise LockedError(
                f"{output} is being written by {holder}. {advice} If that process no "
                f"longer runs, delete {place}."
            ) from None
    path = pathlib.Path(path)
    while True:
        lock = _try(path, pathlib.Path(output), advice)
        if lock is not None:
            return lock


def _try(path: pathlib.Path, output: pathlib.Path, advice: str) -> Lock | None:
    """One attempt; None if the holder deleted the file during the attempt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        holder = _described(path, os.pread(descriptor, _HOLDER_BYTES, 0))
        is_exclusive = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{output} is being written by {holder or 'another process'}. {advice}"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise OSError(error.errno, error.strerror, str(path)) from None
            is_exclusive = False
            logging.warning(
                "The file system of %s does not lock files (%s): nothing prevents two "
                "processes from writing %s at once. Run only one.%s",
                path.parent,
                error.strerror,
                output,
                f" An earlier one may still run: {holder}." if holder else "",
            )
        if is_exclusive and not _is_same(path, descriptor):
            os.close(descriptor)
            return None
        _write_holder(path, descriptor)
        return Lock(path, _HeldFile(path, descriptor), is_exclusive)
    except BaseException:
        os.close(descriptor)
        raise


def _described(path: paths.Place, content: bytes) -> str:
    """The process that wrote the lock file last; "" if the file is empty."""
    text = content.decode(errors="replace").strip()
    if not text:
        return ""
    if text.startswith(_EARLIER):
        return text
    try:
        holder: Any = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        raise NotALockError(
            f"{path} is in the way: a lock file goes there, and this one was not made "
            "by this program. Move it, or choose another output."
        ) from None


def _is_same(path: pathlib.Path, descriptor: int) -> bool:
    """Whether the path still refers to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(path: pathlib.Path, descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
