"""Ends a run with a one-line message when another process is lost.

Without it, a collective with a dead process fails with its library's message or hangs,
or JAX's own service aborts the process. Here every process keeps a connection to
process 0. The kernel closes it when a process dies of any cause. Once a second each
process sends its step, so that a message can name a process that hangs.

Messages are short lines of text. Process 0 listens on all interfaces of its host; it
accepts connections that begin with the random token of the run, which the processes
have from JAX's coordination service. Others are closed.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import hmac
import os
import secrets
import socket
import threading
import time
import traceback
from typing import Any, TextIO

from absl import logging
import jax

from prottrans_jax import printable
from prottrans_jax.distributed import barriers, roll_call

EXIT_LOST = 1
_ADDRESS_S = 900.0
_CONNECT_S = 60.0
# A connection must introduce itself within this time.
_HELLO_S = 10.0
# Longest message; longer ones are cut.
_MESSAGE_CHARS = 4096
# Message of a process that ends by itself: this word, and its error if it has one.
_BYE = "bye"
# Regular message of a process: this word, its step and, from process 0, a sentence
# about a process that hangs.
_AT = "at"
# A host whose kernel acknowledges no data for this long is lost, or the network is. The
# kernel of a process that hangs still acknowledges.
_HOST_GONE_S = 100
_ADVICE = (
    "Start the same command again on all hosts; training resumes from its last "
    "checkpoint."
)
# First words of errors of XLA's collectives, in ValueError or JaxRuntimeError.
_STATUS = tuple(
    f"{code}:"
    for code in "ABORTED CANCELLED DEADLINE_EXCEEDED FAILED_PRECONDITION INTERNAL "
    "UNAVAILABLE UNKNOWN".split()
)


def watch(details: os.PathLike) -> "Peers":
    """Context that ends this process with one line if another process is lost.

    Args:
      details: File for the traceback of a failed collective.
    """

    def exchange(address: str | None) -> str:
        return barriers.gather("address of process 0", address, _ADDRESS_S)[0]

    return Peers(
        jax.process_index(),
        jax.process_count(),
        roll_call.whoami(),
        exchange,
        details,
    )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Times of a watch, in seconds.

    Attributes:
      grace_s: Processes that end for the same reason do so within this time.
      beat_s: Time between two messages of a process.
      silent_s: A process that has sent nothing for this long hangs, all its threads.
    """

    grace_s: float = 15.0
    beat_s: float = 1.0
    silent_s: float = 10.0


class Peers:
    """Watches the other processes of a run while the body of the context runs.

    Args:
      process: Index of this process, from 0.
      count: Number of processes of the run.
      whoami: Name of this process, for messages.
      exchange_address: Called with "HOST:PORT:TOKEN" on process 0 and None on the
        others; returns that of process 0 on all.
      details: File for the traceback of a failed collective.
      end: Called with the line to print instead of ending the process; for tests.
      limits: Times of the watch.

    Attributes:
      step: Current step of this process, set by the caller.
    """

    def __init__(
        self,
        process: int,
        count: int,
        whoami: str,
        exchange_address: Callable[[str | None], str],
        details: os.PathLike,
        end: Callable[[str], None] | None = None,
        limits: Limits = Limits(),
    ):
        self._process, self._count, self._whoami = process, count, whoami
        self._exchange = exchange_address
        self._details = details
        self._end = end or _end
        self._limits = limits
        self._links: list[socket.socket] = []
        self._lock = threading.Lock()
        self._leaving = False
        self._closed = threading.Event()
        # Name of a process to the time (monotonic) and step of its last message.
        self._last_messages: dict[str, tuple[float, int]] = {}
        # Last sentence from process 0 about a process that hangs.
        self._hang_report = ""
        self.step = 0

    def __enter__(self) -> "Peers":
        if self._count == 1:
            return self
        if self._process == 0:
            server = socket.create_server(("", 0), backlog=self._count)
            port = server.getsockname()[1]
            token = secrets.token_hex(16)
            self._exchange(f"{socket.gethostname()}:{port}:{token}")
            self._start(self._accept, server, token)
            self._start(self._beat)
            return self
        host, port, token = self._exchange(None).rsplit(":", 2)
        try:
            link = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        except OSError as error:
            logging.warning(
                "Process 0 cannot be reached at %s:%s (%s): a lost host is detected "
                "only when a collective fails.",
                *(host, port, error),
            )
            return self
        link.settimeout(None)
        _close_with_host(link)
        link.sendall(f"{token} {self._process} {self._whoami}\n".encode())
        self._links.append(link)
        lines = link.makefile(encoding="utf-8", errors="replace")
        self._start(self._read, lines, f"process 0 ({host})")
        self._start(self._beat)
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        if self._count == 1:
            return
        self._closed.set()
        if error is not None and is_collective(error):
            with open(self._details, "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            # First wait for the closed connection, which names the lost process.
            time.sleep(self._limits.grace_s / 3)
            self._end(
                f"error: step {self.step}: a collective failed on process "
                f"{self._process} ({self._whoami}): another host was lost, or the "
                f"network. {_ADVICE} Details: {self._details}"
            )
            return
        self._leaving = True
        reason = "" if error is None else (str(error) or type(error).__name__)
        self._send(f"{_BYE} {reason.partition(chr(10))[0]}")

    def report_hang(self) -> str:
        """Names the process that hangs, also to the other processes.

        Call it when this process makes no progress and is about to end.

        Returns:
          One sentence; "" if no process can be named, as in a run of one process.
        """
        hang_report = self._describe_hang() or self._hang_report
        with self._lock:
            self._leaving = True
        self._send(hang_report or f"process {self._process} ({self._whoami}) gave up")
        return hang_report

    def _describe_hang(self) -> str:
        """Names a process that is silent, or is at an earlier step than others."""
        now = time.monotonic()
        last_messages = dict(self._last_messages)
        for name, (when, step) in last_messages.items():
            if now - when > self._limits.silent_s:
                return (
                    f"{name} hangs: it has sent nothing for {now - when:.0f} s, since "
                    f"step {step}"
                )
        # Only process 0 receives the steps of all.
        if self._process or not last_messages:
            return ""
        steps = {f"process 0 ({self._whoami})": self.step}
        steps |= {name: step for name, (_, step) in last_messages.items()}
        last = min(steps, key=lambda name: steps[name])
        furthest = max(steps.values())
        if steps[last] == furthest:
            return ""
        return f"{last} hangs: it is at step {steps[last]}, others at {furthest}"

    def _beat(self) -> None:
        while not self._closed.wait(self._limits.beat_s):
            hang_report = "" if self._process else self._describe_hang()
            self._send(f"{_AT} {self.step} {hang_report}")

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=run, args=arguments, daemon=True).start()

    def _accept(self, server: socket.socket, token: str) -> None:
        """Accepts connections until all processes have introduced themselves.

        Each is heard in a thread of its own: one that says nothing delays no other.
        """
        server.settimeout(1.0)
        with server:
            while len(self._links) < self._count - 1 and not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    link, _ = server.accept()
                    self._start(self._hear, link, token)

    def _hear(self, link: socket.socket, token: str) -> None:
        """Reads a process's messages if its first line begins with the token."""
        link.settimeout(_HELLO_S)
        lines = link.makefile(encoding="utf-8", errors="replace")
        try:
            said, _, introduction = lines.readline(_MESSAGE_CHARS).partition(" ")
        except OSError:
            said = ""
        number, _, who = introduction.strip().partition(" ") if said else ("", "", "")
        is_ours = hmac.compare_digest(said.encode(), token.encode())
        if not (is_ours and number.isdecimal() and 0 < int(number) < self._count):
            lines.close()
            link.close()
            return
        link.settimeout(None)
        _close_with_host(link)
        name = f"process {int(number)} ({who})"
        self._last_messages[name] = time.monotonic(), 0
        self._links.append(link)
        self._read(lines, name)

    def _read(self, lines: TextIO, name: str) -> None:
        """Reads messages of one process; a closed connection means that it died."""
        try:
            while line := lines.readline(_MESSAGE_CHARS):
                line = line.strip()
                if line.startswith(f"{_AT} "):
                    _, step, *hang_report = line.split(" ", 2)
                    self._last_messages[name] = time.monotonic(), int(step)
                    self._hang_report = hang_report[0] if hang_report else ""
                elif line.startswith(_BYE):
                    self._last_messages.pop(name, None)
                    self._on_bye(name, line.removeprefix(_BYE).strip())
                    return
                else:  # Another process reports a lost or hanging process.
                    self._end_run(line)
                    return
        except (OSError, ValueError):  # A killed process resets the connection.
            pass
        self._end_run(f"{name} is gone")

    def _on_bye(self, name: str, reason: str) -> None:
        """Ends this process if another ended with an error and this one goes on."""
        if not reason:
            return
        time.sleep(self._limits.grace_s)
        self._end_run(f"{name} ended: {reason}")

    def _end_run(self, cause: str) -> None:
        """Ends this process, and tells the others the cause."""
        with self._lock:
            if self._leaving:
                return
            self._leaving = True
        self._send(cause)
        self._end(
            f"error: step {self.step}: {cause}. Its own output may say why. {_ADVICE}"
        )

    def _send(self, line: str) -> None:
        for link in self._links:
            try:
                link.sendall(f"{line}\n".encode())
            except OSError:  # The process at the other end is lost.
                pass


def _close_with_host(link: socket.socket) -> None:
    """Lets the kernel close the connection if the other host is switched off."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux.
        link.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _HOST_GONE_S
        )


def is_collective(error: BaseException) -> bool:
    """Whether an error comes from XLA's runtime, such as a failed collective."""
    name = type(error).__name__
    return name in ("JaxRuntimeError", "XlaRuntimeError", "ValueError") and str(
        error
    ).startswith(_STATUS)


def _end(line: str) -> None:
    # Without clean-up at exit: JAX's would wait for the lost process, and its service
    # would then abort this one with a stack trace.
    os.write(2, f"\n{printable.plain(line)}\n".encode())
    os._exit(EXIT_LOST)
