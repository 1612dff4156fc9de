"""Ends a run with one line when another host is lost.

A collective whose other side died fails with the message of its library, hangs, or the
process is aborted by JAX's own service. Here every process keeps a connection to
process 0: the kernel closes it when a process dies, whatever it died of. Once a second
each process sends its step, so that one that hangs can be named.
"""

from collections.abc import Callable
import os
import socket
import threading
import time
import traceback
from typing import Any

from absl import logging

EXIT_LOST = 1
_CONNECT_S = 60.0
# Hosts that end for the same reason do so within this time.
_GRACE_S = 15.0
_BYE = "bye"
# What a process sends every second: this, its step, and whom process 0 holds up.
_AT = "at"
_BEAT_S = 1.0
# A host whose kernel acknowledges nothing for so long is gone, or the network is; the
# kernel of one that hangs still does.
_HOST_GONE_S = 100
# A process that sent nothing for so long stands still, with all its threads.
_SILENT_S = 10.0
_WAY_ON = (
    "Start the same command again on all hosts: the run goes on from its last "
    "checkpoint."
)
# How the errors of XLA's collectives begin, as ValueError or JaxRuntimeError.
_STATUS = tuple(
    f"{code}:"
    for code in "ABORTED CANCELLED DEADLINE_EXCEEDED FAILED_PRECONDITION INTERNAL "
    "UNAVAILABLE UNKNOWN".split()
)


class Peers:
    """Watches the other processes of a run while its body runs.

    Args:
      process: This one, from 0.
      count: Processes of the run.
      whoami: This process, for messages.
      exchange_address: Process 0 calls it with "HOST:PORT", the others with None; gives
        everyone process 0's.
      details: File for the traceback of what failed here.
      end: Called with the line to print instead of ending the process; for tests.
    """

    def __init__(
        self,
        process: int,
        count: int,
        whoami: str,
        exchange_address: Callable[[str | None], str],
        details: os.PathLike,
        end: Callable[[str], None] | None = None,
    ):
        self._process, self._count, self._whoami = process, count, whoami
        self._exchange = exchange_address
        self._details = details
        self._end = end or _end
        self._links: list[socket.socket] = []
        self._lock = threading.Lock()
        self._leaving = False
        self._closed = threading.Event()
        # Name of each process that was heard: when (monotonic), and its step.
        self._heard: dict[str, tuple[float, int]] = {}
        # What process 0 last said about a process that hangs.
        self._told = ""
        self.step = 0

    def __enter__(self) -> "Peers":
        if self._count == 1:
            return self
        if self._process == 0:
            server = socket.create_server(("", 0), backlog=self._count)
            port = server.getsockname()[1]
            self._exchange(f"{socket.gethostname()}:{port}")
            self._start(self._accept, server)
            self._start(self._beat)
            return self
        host, _, port = self._exchange(None).rpartition(":")
        try:
            link = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        except OSError as error:
            logging.warning(
                "Process 0 cannot be reached at %s:%s (%s): a lost host is noticed by "
                "its collectives only.",
                *(host, port, error),
            )
            return self
        link.settimeout(None)
        _end_with_the_host(link)
        link.sendall(f"{self._process} {self._whoami}\n".encode())
        self._links.append(link)
        self._start(self._read, link, f"process 0 ({host})")
        self._start(self._beat)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._count == 1:
            return
        self._closed.set()
        if error is not None and is_collective(error):
            with open(self._details, "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            # The connection of the one that is gone says which it is.
            time.sleep(_GRACE_S / 3)
            self._end(
                f"error: step {self.step}: a collective failed on process "
                f"{self._process} ({self._whoami}): another host was lost, or the "
                f"network. {_WAY_ON} Details: {self._details}"
            )
            return
        self._leaving = True
        why = "" if error is None else (str(error) or type(error).__name__)
        self._tell(f"{_BYE} {why.partition(chr(10))[0]}")

    def report_hang(self) -> str:
        """Who hangs, in one sentence, which the other processes are told too.

        Call it when this process makes no progress and is about to end.

        Returns:
          "" if it cannot be told, as for a run of one process.
        """
        hanging = self._hanging() or self._told
        with self._lock:
            self._leaving = True
        self._tell(hanging or f"process {self._process} ({self._whoami}) gave up")
        return hanging

    def _hanging(self) -> str:
        """The process that is silent, or else is at an earlier step than others."""
        now = time.monotonic()
        heard = dict(self._heard)
        for name, (when, step) in heard.items():
            if now - when > _SILENT_S:
                return (
                    f"{name} hangs: it has sent nothing for {now - when:.0f} s, since "
                    f"step {step}"
                )
        # Process 0 alone hears of all.
        if self._process or not heard:
            return ""
        steps = {f"process 0 ({self._whoami})": self.step}
        steps |= {name: step for name, (_, step) in heard.items()}
        last = min(steps, key=lambda name: steps[name])
        furthest = max(steps.values())
        if steps[last] == furthest:
            return ""
        return f"{last} hangs: it is at step {steps[last]}, others at {furthest}"

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_S):
            about = "" if self._process else self._hanging()
            self._tell(f"{_AT} {self.step} {about}")

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=run, args=arguments, daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        for _ in range(self._count - 1):
            link, _ = server.accept()
            _end_with_the_host(link)
            self._links.append(link)
            self._start(self._read, link, "")
        server.close()

    def _read(self, link: socket.socket, name: str) -> None:
        """Reads one connection: who it is, then what happened; its end is a death."""
        lines = link.makefile(encoding="utf-8", errors="replace")
        try:
            for line in lines:
                line = line.strip()
                if not name:
                    number, _, who = line.partition(" ")
                    name = f"process {number} ({who})"
                    self._heard[name] = time.monotonic(), 0
                elif line.startswith(f"{_AT} "):
                    _, step, *about = line.split(" ", 2)
                    self._heard[name] = time.monotonic(), int(step)
                    self._told = about[0] if about else ""
                elif line.startswith(_BYE):
                    self._heard.pop(name, None)
                    self._left(name, line.removeprefix(_BYE).strip())
                    return
                else:  # Who is gone or hangs, as another process saw it.
                    self._lost(line)
                    return
        except OSError:  # Reset by a process that was killed.
            pass
        self._lost(f"{name} is gone")

    def _left(self, name: str, why: str) -> None:
        """Another process ended by itself; this one does so too, or waits in vain."""
        if not why:
            return
        time.sleep(_GRACE_S)
        self._lost(f"{name} ended: {why}")

    def _lost(self, what: str) -> None:
        with self._lock:
            if self._leaving:
                return
            self._leaving = True
        self._tell(what)
        self._end(
            f"error: step {self.step}: {what}. Its own output may say why. {_WAY_ON}"
        )

    def _tell(self, line: str) -> None:
        for link in self._links:
            try:
                link.sendall(f"{line}\n".encode())
            except OSError:  # It is the one that is gone.
                pass


def _end_with_the_host(link: socket.socket) -> None:
    """Lets the kernel close a connection whose other host was switched off."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux.
        link.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _HOST_GONE_S
        )


def is_collective(error: BaseException) -> bool:
    """Whether an error is one of XLA's runtime, not one of ours."""
    name = type(error).__name__
    return name in ("JaxRuntimeError", "XlaRuntimeError", "ValueError") and str(
        error
    ).startswith(_STATUS)


def _end(line: str) -> None:
    # At once: JAX's own service would abort this process with a stack trace, and its
    # clean-up at exit would wait for the one that is gone.
    os.write(2, f"\n{line}\n".encode())
    os._exit(EXIT_LOST)
