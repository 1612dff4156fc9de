"""SIGTERM and SIGINT as a flag that loops read, and a thread for code that does not.

An exception raised inside a signal handler is lost when it hits a garbage-collection
callback or a destructor, and breaks what is being imported. So the handler sets a flag,
and loops call `check`, which raises `Stopped` where nothing is half done. A thread ends
the process if it is busy with something that cannot be interrupted: an import, a
compilation, a long batch.

  watch = stop_signals.install("prottrans", ends_process=True)   # before heavy imports
  ...
  stop_signals.check()                                           # in every loop

Light: nothing but the standard library is imported.
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
# Seconds until a process that does not answer is ended, and more for one that is on its
# way out: it may be writing its last results.
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
      program: Begins the line that says that it was stopped.
      advice: Ends that line: what is kept, what to do next.
      number: Of the first signal that came, or None.
    """

    def __init__(self, program: str, advice: str, *, ends_process: bool):
        self.program = program
        self.advice = advice
        self.number: int | None = None
        self.actions: list[Callable[[], object]] = []
        self._ends_process = ends_process
        self._came = 0.0
        self._unwinding = False
        self._leaving = threading.Lock()
        self._previous: dict[int, Any] = {}

    @property
    def line(self) -> str:
        """What is said to the user."""
        name = signal.Signals(self.number or signal.SIGTERM).name
        return f"{self.program}: stopped by {name}. {self.advice}".rstrip()

    def check(self) -> None:
        """Raises `Stopped` if a signal came."""
        if self.number is not None:
            self._unwinding = True
            raise Stopped(self.number)

    def guard(self, run: Callable[[], int]) -> int:
        """Exit status of `run`, or of the signal that stopped it.

        After a signal this says so, and ends the process here if it may: the
        interpreter would wait for what still runs on the device.
        """
        try:
            status = run()
        except Stopped as stopped:
            status = stopped.status
        except KeyboardInterrupt:  # In a thread that cannot take signals.
            status = 130
        finally:
            self._give_back()
        if self.number is None:
            return status
        self._leaving.acquire()  # Never released: one thread speaks and ends.
        _say(self.line)
        status = 128 + self.number
        if self._ends_process:
            _end(status)
        return status

    def _give_back(self) -> None:
        """Gives the signals back to whoever had them, if the process goes on."""
        global _watch
        if self._ends_process:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if _watch is self:
            _watch = None

    def start(self) -> None:
        """Takes the signals."""
        if self._ends_process:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            # Written to by the handler in C: the main thread may not get to run
            # Python for minutes.
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(
                target=self._wait, args=(reader,), name="stop_signals", daemon=True
            ).start()
            os.register_at_fork(after_in_child=_forget)
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        if self.number is None:
            self.number, self._came = number, time.monotonic()
        elif not self._ends_process and self._is_another():
            raise Stopped(number)

    def _is_another(self) -> bool:
        return time.monotonic() - self._came > _SAME_SIGNAL_S

    def _wait(self, reader: int) -> None:
        deadline: float | None = None
        while True:
            left = None
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic())
            if select.select([reader], [], [], left)[0]:
                numbers = [n for n in os.read(reader, 64) if n in _SIGNALS]
                if numbers and deadline is None:
                    if self.number is None:
                        self.number, self._came = numbers[0], time.monotonic()
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
            cleanup = threading.Thread(target=self._act, daemon=True)
            cleanup.start()
            cleanup.join(_CLEANUP_S)
            _say(self.line)
        _end(128 + (self.number or signal.SIGTERM))

    def _act(self) -> None:
        for action in reversed(self.actions):
            with contextlib.suppress(Exception):
                action()


# Advice of a command that makes its output in one step, at the end.
NOTHING_IS_LEFT = "nothing was left behind."

_watch: Watch | None = None


def guarded(program: str, advice: str, run: Callable[[], int]) -> int:
    """Exit status of `run`, or of the signal that stopped it.

    Args:
      program: As in `install`; the handlers that are installed stay, with their line.
      advice: As in `install`.
      run: Returns an exit status; `Stopped` and KeyboardInterrupt end here.
    """
    return install(program, advice, ends_process=False).guard(run)


def install(program: str, advice: str, *, ends_process: bool) -> Watch:
    """Takes SIGTERM and SIGINT; call it before anything heavy is imported.

    In a thread other than the main one Python allows no handlers: then nothing is taken
    and `Watch.number` stays None.

    Args:
      program: Begins the line that says that it was stopped.
      advice: Ends that line.
      ends_process: Whether the process belongs to the caller. It is then ended, with
        128 plus the signal's number, 2 s after a signal that no `check` answers, and at
        once by a second signal. If not, a second signal raises in the handler.
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
    """Raises `Stopped` in the main thread if a signal came and `install` took it.

    Other threads finish what they do: they may be committing results.
    """
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.check()


@contextlib.contextmanager
def before_exit(action: Callable[[], object]) -> Iterator[None]:
    """Within, `action` is called if the process has to be ended from another thread.

    Args:
      action: Called in a thread while the main thread may still run; has 10 s.
    """
    actions = [] if _watch is None else _watch.actions
    actions.append(action)
    try:
        yield
    finally:
        actions.remove(action)


def _forget() -> None:
    """In a forked child: its signals are not the parent's."""
    global _watch
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(line: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock. A full pipe that nobody
    # reads must not keep the process.
    if select.select([], [2], [], 1.0)[1]:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


def _end(status: int) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    os._exit(status)
