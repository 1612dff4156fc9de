"""A lock in a bucket: an object that its holder renews, and others leave alone.

The object is created and renewed with conditional writes (Google Cloud Storage:
`ifGenerationMatch`; S3: `If-None-Match` and `If-Match`), so that of two processes one
succeeds. Its content names the holder.

A holder that was killed on this machine is recognised by its process. One on another
machine is taken for dead when its object has not changed for `expires_s` seconds, as
measured here: no two clocks are compared. A holder that was paused for longer finds at
its next renewal that it has lost the lease, and `check` raises. Before it writes
anything that the next holder writes too, it calls `check`.
"""

import errno
import json
import os
import socket
import threading
import time
from typing import Any
import uuid

from absl import logging

from prottrans_jax.files import buckets

RENEW_S = 10.0
EXPIRES_S = 60.0
# `check(RECENT_S)` leaves half of the time for the write that follows it.
RECENT_S = EXPIRES_S / 2
_POLL_S = 1.0
_FIELDS = {"pid", "host", "machine", "started", "token", "expires_s"}


class HeldError(Exception):
    """Another process holds the lease.

    Attributes:
      content: of the object.
    """

    def __init__(self, content: bytes):
        super().__init__(content)
        self.content = content


class LostError(OSError):
    """Another process took the lease while this one was paused or cut off."""


class Lease:
    """A held lease, renewed in the background until it is released.

    Args:
      path: the object, in a bucket.
      renew_s: seconds between renewals.
      expires_s: seconds without renewal after which others may take the lease.

    Raises:
      HeldError: another process holds it.
      OSError: a request failed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        renew_s: float = RENEW_S,
        expires_s: float = EXPIRES_S,
    ):
        self._path = path
        self._store, self._name = buckets.filesystem(path)
        self._renew_s = renew_s
        self._holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "machine": machine(),
            "started": _start_of(os.getpid()),
            "token": uuid.uuid4().hex,
            "renew_s": renew_s,
            "expires_s": expires_s,
        }
        self._renewals = 0
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._version = self._take()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_renewing, name="lease", daemon=True
        )
        self._thread.start()

    def check(self, max_age_s: float = 0.0) -> None:
        """Renews the lease, unless this was done less than `max_age_s` seconds ago.

        Args:
          max_age_s: 0 before a commit. `RECENT_S` before smaller writes, because stores
            limit the rate of writes to one object. `math.inf` makes no request, and
            tells only what the renewals in the background have found.

        Raises:
          LostError: another process has taken it.
          OSError: a request failed.
        """
        if self._lost is None and _now() - self._renewed_at < max_age_s:
            return
        with self._lock:
            self._renew()

    def release(self, *, remove: bool = True) -> None:
        """Ends the lease, unless it is lost, and deletes its object.

        If a request fails the object stays, and others wait until it expires.

        Args:
          remove: has no effect; a lock file may stay, a lease does not.
        """
        self._closed.set()
        self._thread.join()
        try:
            self.check()
            self._store.rm(self._name)
        except LostError:
            pass  # The object is of another process; a renewal has said so.
        except OSError as error:
            logging.warning("%s was not released: %s.", self._path, error.strerror)

    def _take(self) -> str:
        while True:
            stored = self._store.read_version(self._name)
            version = None
            if stored is not None:
                content, version = stored
                self._wait_for_end_of(content, version)
            self._renewed_at = _now()
            taken = self._store.write_version(self._name, self._content(), version)
            if taken is not None:
                return taken

    def _wait_for_end_of(self, content: bytes, version: str) -> None:
        """Returns if the holder is dead; raises HeldError if it is not."""
        holder = _holder(content)
        if not holder:
            raise HeldError(content)
        if holder["machine"] == self._holder["machine"]:
            if _start_of(holder["pid"]) == holder["started"]:
                raise HeldError(content)
            logging.warning(
                "Taking %s from process %s, which ended.", self._path, holder["pid"]
            )
            return
        expires_s = float(holder["expires_s"])
        logging.warning(
            "%s is held by process %s on %s: waiting whether it is renewed, for up to "
            "%g s.",
            *(self._path, holder["pid"], holder["host"], expires_s),
        )
        deadline = time.monotonic() + expires_s
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_S, expires_s / 10))
            stored = self._store.read_version(self._name)
            if stored is None or stored[1] != version:
                # Renewed, taken by another process, or released just now.
                raise HeldError(content if stored is None else stored[0])

    def _keep_renewing(self) -> None:
        while not self._closed.wait(self._renew_s):
            try:
                with self._lock:
                    self._renew()
            except LostError as error:
                logging.error("%s: %s", self._path, error.strerror)
                return
            except OSError as error:
                logging.warning("%s was not renewed: %s.", self._path, error.strerror)

    def _renew(self) -> None:
        if self._lost is None:
            self._renewals += 1
            content, begin = self._content(), _now()
            version = self._store.write_version(self._name, content, self._version)
            if version is not None:
                self._version, self._renewed_at = version, begin
                return
            stored = self._store.read_version(self._name)
            holder = _holder(stored[0]) if stored else {}
            if holder.get("token") == self._holder["token"]:
                # An earlier write was made, and only its answer was lost.
                assert stored is not None
                self._version, self._renewed_at = stored[1], begin
                return
            self._lost = (
                f"to process {holder.get('pid')} on {holder.get('host')}"
                if holder
                else "because its file was deleted or replaced"
            )
        raise LostError(
            errno.ESTALE,
            f"this process was paused or cut off for too long, and lost the lock "
            f"{self._lost}",
            os.fspath(self._path),
        )

    def _content(self) -> bytes:
        return json.dumps({**self._holder, "renewals": self._renewals}).encode()


def _holder(content: bytes) -> dict[str, Any]:
    """The holder that a lease names; empty if it was not written by `Lease`."""
    try:
        holder = json.loads(content)
        float(holder["expires_s"])
        return holder if _FIELDS <= holder.keys() else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _now() -> float:
    """Seconds that also pass while this machine is suspended, where that is known."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def machine() -> str:
    """This boot of this machine, and the namespace of its process numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux: each process counts as a machine of its own.
        return uuid.uuid4().hex


def _start_of(pid: int) -> str:
    """Start time of a running process, which tells it from later ones; "": ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]
