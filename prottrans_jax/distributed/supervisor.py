"""Starts a command again when it ends early: lost host, stall, pre-emption or kill.

The command resumes from its own checkpoints. A command that ends again and again
without a newer checkpoint is given up. Imports the standard library only.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from typing import Any

from prottrans_jax.distributed import roll_call

# Exit statuses of `prottrans_jax.train` after which the same command would end in the
# same way, and those of a shell for a command that it cannot run.
_FINAL = {
    2: "a mistake in flags, settings or paths",
    3: "loss or gradient not finite",
    126: "the command cannot be executed",
    127: "the command does not exist",
    128 + signal.SIGINT: "interrupted",
}
_CAUSES = {
    0: "done",
    1: "failed, or another host was lost",
    roll_call.EXIT_STALLED: "stalled, or the run did not start in time",
    128 + signal.SIGTERM: "pre-empted",
}
_FORWARDED = (signal.SIGTERM, signal.SIGINT)
_MODEL_DIR = re.compile(r"--?(?:gin\.MODEL_DIR|model_dir|gin_bindings)")


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a supervisor waits, and when it gives up.

    Attributes:
      restarts_without_progress: consecutive restarts that may end without a newer
        checkpoint.
      first_wait_s: wait before the first restart. Doubled with every restart without
        progress.
      longest_wait_s: longest wait. All hosts of a run must join within the run's
        `--initialization_timeout`, so it should be shorter.
    """

    restarts_without_progress: int = 2
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0


class Supervisor:
    """Runs a command until it is done or cannot go on.

    SIGTERM and SIGINT are forwarded to the command, which is then not started again;
    SIGUSR1 is forwarded too. The command gets a process group of its own: a terminal
    would otherwise send it the same interrupt a second time.

    Args:
      command: program and arguments.
      newest_step: step of the newest committed checkpoint; None: there is none.
      emit: called with one event: "event" is "start", "exit", "restart", "give_up" or
        "done"; JSON-able.
      limits: of waits and restarts.
    """

    def __init__(
        self,
        command: Sequence[str],
        newest_step: Callable[[], int | None],
        emit: Callable[[dict[str, Any]], None],
        limits: Limits = Limits(),
    ):
        self._command = list(command)
        self._newest_step = newest_step
        self._emit = emit
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None
        self._stop = threading.Event()
        self._begun = time.monotonic()

    def run(self) -> int:
        """Runs the command, again if needed; returns its last exit status.

        Must be called in the main thread, which alone receives signals. A command that
        was killed has the status 128 plus the number of the signal.
        """
        numbers = (*_FORWARDED, signal.SIGUSR1)
        previous = {n: signal.signal(n, self._on_signal) for n in numbers}
        try:
            return self._run()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        without_progress = 0
        is_restart = False
        while True:
            before = self._newest_step()
            code, seconds = self._attempt(before)
            step = self._newest_step()
            cause = _cause(code)
            status = 128 - code if code < 0 else code
            self._event(
                "exit",
                step,
                status=code if code >= 0 else None,
                signal=signal.Signals(-code).name if code < 0 else None,
                cause=cause,
                seconds=seconds,
            )
            if self._signal is not None:
                name = signal.Signals(self._signal).name
                self._event("done", step, status=status, cause=f"stopped by {name}")
                return status
            if code == 0:
                self._event("done", step, status=0, cause=cause)
                return 0
            if code in _FINAL:
                self._give_up(step, status, f"{cause}: a restart would end alike")
                return status
            progress = step is not None and (before is None or step > before)
            without_progress = 0 if progress else without_progress + is_restart
            if without_progress >= self._limits.restarts_without_progress:
                reason = (
                    f"{cause}; {without_progress} restarts in a row ended without a "
                    f"newer checkpoint than step {step}"
                )
                self._give_up(step, status, reason)
                return status
            wait_s = min(
                self._limits.first_wait_s * 2**without_progress,
                self._limits.longest_wait_s,
            )
            self._event("restart", step, cause=cause, wait_seconds=wait_s)
            if self._stop.wait(wait_s):
                assert self._signal is not None
                name = signal.Signals(self._signal).name
                self._event("done", step, status=status, cause=f"stopped by {name}")
                return 128 + self._signal
            is_restart = True

    def _attempt(self, step: int | None) -> tuple[int, float]:
        """Runs the command once; its return code, negative for a signal, and time."""
        begin = time.monotonic()
        try:
            # Process group 0: a new group, whose number is that of the process.
            self._process = subprocess.Popen(self._command, process_group=0)
        except OSError as error:
            self._event("start", step, command=shlex.join(self._command))
            return 126 if isinstance(error, PermissionError) else 127, 0.0
        pid = self._process.pid
        self._event("start", step, command=shlex.join(self._command), pid=pid)
        if self._signal is not None:  # It came before there was a process.
            _send(pid, self._signal)
        code = self._process.wait()
        self._process = None
        # What a killed command started would go on writing to the model_dir.
        _send(pid, signal.SIGKILL)
        return code, time.monotonic() - begin

    def _give_up(self, step: int | None, status: int, reason: str) -> None:
        self._event("give_up", step, status=status, cause=reason)

    def _event(self, event: str, step: int | None, **fields: Any) -> None:
        total = time.monotonic() - self._begun
        fields = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in fields.items()
            if value is not None
        }
        self._emit(
            {"event": event, "time": round(time.time(), 3), "step": step}
            | {"total_seconds": round(total, 3)}
            | fields
        )

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if number in _FORWARDED:
            self._signal = number
            self._stop.set()
        process = self._process
        if process is not None:
            _send(process.pid, number)


def model_dir_of(command: Sequence[str]) -> str | None:
    """The model_dir that a command of `prottrans_jax.train` names; None without one.

    Reads --model_dir, --gin.MODEL_DIR and --gin_bindings="MODEL_DIR = ...". As in the
    run, --model_dir takes precedence, and of several bindings the last.
    """
    model_dirs: dict[str, str] = {}
    words = list(command)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not _MODEL_DIR.fullmatch(flag):
            continue
        if not equals:
            value = words[index + 1] if index + 1 < len(words) else ""
        name = flag.lstrip("-")
        if name == "gin_bindings":
            macro, equals, value = value.partition("=")
            if macro.strip() != "MODEL_DIR" or not equals:
                continue
        kind = "flag" if name == "model_dir" else "binding"
        model_dirs[kind] = value.strip() if kind == "flag" else _unquoted(value)
    return model_dirs.get("flag") or model_dirs.get("binding")


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _cause(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code in _CAUSES or code in _FINAL:
        return _CAUSES.get(code) or _FINAL[code]
    if 128 < code < 128 + signal.NSIG:  # A shell's status for a killed program.
        return f"killed by {signal.Signals(code - 128).name}"
    return f"failed with exit status {code}"


def _send(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # All its processes have ended.
        pass
