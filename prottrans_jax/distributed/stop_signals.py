"""SIGTERM and SIGINT as a flag that loops check, and a thread for code without checks.

An exception in a signal handler is lost inside a garbage-collection callback or a
destructor, and breaks a running import. So the handler sets a flag, and loops call
`check`, which raises `Stopped` between units of work. A thread ends the process if it
is busy with something that cannot be interrupted: an import, a compilation, a long
batch.

  watch = stop_signals.install("prottrans", ends_process=True)   # before heavy imports
  ...
  stop_signals.check()                                           # in every loop

Imports the standard library only.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Any, NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds until a process that does not react is ended, and additional seconds for one
# that is cleaning up, e.g. writing its last results.
_GRACE_S, _CLEANUP_S = 2.0, 10.0
# `timeout` and some schedulers send the same signal twice in a row.
_SAME_SIGNAL_S = 0.5


class Stopped(BaseException):
    """A stop signal came; only the outermost frame handles it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


class Watch:
    """The handlers of a process; made by `install`.

    Attributes:
      program: Name of the program, for the message after a signal.
      advice: End of that message: what was kept, what to do next.
      number: Number of the first signal received, or None.
    """

    def __init__(self, program: str, advice: str, *, ends_process: bool):
        self.program = program
        self.advice = advice
        self.number: int | None = None
        self.actions: list[Callable[[], object]] = []
        self._ends_process = ends_process
        self._received_at = 0.0
        self._unwinding = False
        self._handed_over = False
        self._leaving = threading.Lock()
        self._previous: dict[int, Any] = {}

    @property
    def line(self) -> str:
        """Message to the user after a signal."""
        name = signal.Signals(self.number or signal.SIGTERM).name
        return f"{self.program}: stopped by {name}. {self.advice}".rstrip()

    def check(self) -> None:
        """Raises `Stopped` if a signal was received."""
        if self.number is not None:
            self._unwinding = True
            raise Stopped(self.number)

    def guard(self, run: Callable[[], int]) -> int:
        """Exit status of `run`, or of the signal that stopped it.

        After a signal this prints `line` and, with `ends_process`, ends the process:
        the interpreter's exit would wait for programs that still run on the device.
        """
        try:
            status = run()
        except Stopped as stopped:
            status = stopped.status
        except KeyboardInterrupt:  # In a thread that cannot take signals.
            status = 130
        finally:
            self._restore_handlers()
        if self.number is None:
            return status
        # Never released: only one thread prints the line and ends the process.
        self._leaving.acquire()
        _print_line(self.line)
        status = 128 + self.number
        if self._ends_process:
            _end(status)
        return status

    def _restore_handlers(self) -> None:
        """Restores the previous signal handlers, unless the process ends."""
        global _watch
        if self._ends_process:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if _watch is self:
            _watch = None

    def start(self) -> None:
        """Installs the signal handlers."""
        if self._ends_process:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            # The handler in C writes to this pipe; the main thread may not run Python
            # code for minutes.
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(
                target=self._wait, args=(reader,), name="stop_signals", daemon=True
            ).start()
            os.register_at_fork(after_in_child=_forget)
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def hand_over(self) -> dict[int, Any]:
        """Ends the watch; returns the handlers to restore after the caller's."""
        self._handed_over = True
        if not self._ends_process:
            return self._previous
        signal.set_wakeup_fd(-1)
        # At its end the process has nothing to lose. Python's handler of SIGINT would
        # print a traceback from whatever it interrupts.
        return dict.fromkeys(_SIGNALS, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if self.number is None:
            self.number, self._received_at = number, time.monotonic()
        elif not self._ends_process and self._is_another():
            raise Stopped(number)

    def _is_another(self) -> bool:
        return time.monotonic() - self._received_at > _SAME_SIGNAL_S

    def _wait(self, reader: int) -> None:
        deadline: float | None = None
        while True:
            left = None
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic())
            has_signals = bool(select.select([reader], [], [], left)[0])
            if self._handed_over:
                return
            if has_signals:
                numbers = [n for n in os.read(reader, 64) if n in _SIGNALS]
                if numbers and deadline is None:
                    if self.number is None:
                        self.number = numbers[0]
                        self._received_at = time.monotonic()
                    deadline = time.monotonic() + _GRACE_S
                elif numbers and self._is_another():
                    _end(128 + numbers[-1])
            elif self._unwinding:
                self._unwinding = False
                deadline = time.monotonic() + _CLEANUP_S
            else:
                self._force()

    def _force(self) -> NoReturn:
        if self._leaving.acquire(blocking=False):
            cleanup = threading.Thread(target=self._run_actions, daemon=True)
            cleanup.start()
            cleanup.join(_CLEANUP_S)
            _print_line(self.line)
        _end(128 + (self.number or signal.SIGTERM))

    def _run_actions(self) -> None:
        for action in reversed(self.actions):
            with contextlib.suppress(Exception):
                action()


# Advice of a command that creates its output in one step at the end.
NOTHING_IS_LEFT = "nothing was left behind."

_watch: Watch | None = None


def guarded(program: str, advice: str, run: Callable[[], int]) -> int:
    """Exit status of `run`, or of the signal that stopped it.

    Args:
      program: As in `install`. Handlers that are installed already stay, with their own
        program and advice.
      advice: As in `install`.
      run: Returns an exit status; `Stopped` and KeyboardInterrupt end here.
    """
    return install(program, advice, ends_process=False).guard(run)


def install(program: str, advice: str, *, ends_process: bool) -> Watch:
    """Installs handlers of SIGTERM and SIGINT; call it before heavy imports.

    Python allows handlers only in the main thread. In another thread none is installed,
    and `Watch.number` stays None.

    Args:
      program: Name of the program, for the message after a signal.
      advice: End of that message.
      ends_process: Whether the process belongs to the caller. Then it is ended, with
        128 plus the signal's number, 2 s after a signal if no `check` follows, and at
        once by a second signal. Otherwise a second signal raises in the handler.
    """
    global _watch
    watch = Watch(program, advice, ends_process=ends_process)
    if threading.current_thread() is threading.main_thread():
        if _watch is not None:
            return _watch
        watch.start()
        _watch = watch
    return watch


def check() -> None:
    """Raises `Stopped` in the main thread if a handler of `install` got a signal.

    Does nothing in other threads, which may be committing results.
    """
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.check()


def hand_over() -> tuple[int | None, dict[int, Any]]:
    """Leaves stop signals to handlers that the caller has installed by now.

    Returns:
      The signal received before, or None. And the handlers to set at the end of the
      caller's, instead of those that it replaced; empty without a watch.
    """
    global _watch
    watch, _watch = _watch, None
    if watch is None:
        return None, {}
    return watch.number, watch.hand_over()


@contextlib.contextmanager
def before_exit(action: Callable[[], object]) -> Iterator[None]:
    """Context in which `action` runs before a thread ends the process after a signal.

    Args:
      action: Called in a thread while the main thread may still run; limited to 10 s.
    """
    actions = [] if _watch is None else _watch.actions
    actions.append(action)
    try:
        yield
    finally:
        actions.remove(action)


def _forget() -> None:
    """Removes the handlers in a forked child."""
    global _watch
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _print_line(line: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock. A full pipe without a
    # reader must not block the process.
    if select.select([], [2], [], 1.0)[1]:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


def _end(status: int) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    os._exit(status)
