"""Metrics of a run: sums to means, wall time by cause, writers, progress line."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import sys
import time
from typing import Any, Protocol, runtime_checkable

from absl import logging
import jax
import numpy as np
from numpy.typing import ArrayLike
from rich import progress

from prottrans_jax.files import appending, json_text, locks, paths
from prottrans_jax.training import logged_steps

Scalars = logged_steps.Scalars


class SumAccumulator:
    """Adds up (total, weight) pairs on the host in float64, in the order given.

    Its state is JSON, stored in checkpoints, and restored exactly: a restart inside a
    window of steps does not change the logged means.
    """

    def __init__(self, state: Mapping[str, Sequence[float]] | None = None):
        self._sums = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, sums: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step's pairs (device scalars or numbers)."""
        for name, (total, weight) in sums.items():
            pair = self._sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(total)
            pair[1] += float(weight)

    def clear(self) -> None:
        """Starts a new window."""
        self._sums = {}

    def state(self) -> dict[str, list[float]]:
        """The pairs so far, as JSON."""
        return {name: list(pair) for name, pair in self._sums.items()}

    def total(self, name: str) -> float:
        """The sum of `name`; 0 if it was never added."""
        return self._sums.get(name, [0.0, 0.0])[0]

    def means(self) -> dict[str, float]:
        """Weighted mean of each metric; metrics of weight 0 are left out."""
        return {
            name: total / weight
            for name, (total, weight) in sorted(self._sums.items())
            if weight
        }


def with_perplexity(means: Mapping[str, float]) -> dict[str, float]:
    """Adds `*perplexity` = exp of every `*loss` (natural log)."""
    extra = {
        name.removesuffix("loss") + "perplexity": math.exp(min(value, 700.0))
        for name, value in means.items()
        if name == "loss" or name.endswith("_loss")
    }
    return {**means, **extra}


class Stopwatch:
    """Splits the wall time of a run by what the host waited for.

    Causes nest (a checkpoint inside an evaluation). Each second counts for the
    innermost cause; the remaining time counts as "compute". The parts add up to the
    wall time.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._stack: list[list[Any]] = []

    @contextlib.contextmanager
    def cause(self, name: str) -> Iterator[None]:
        """Attributes the time inside the block to `name`."""
        started = time.perf_counter()
        frame: list[Any] = [name, 0.0]  # name, seconds claimed by inner causes
        self._stack.append(frame)
        try:
            with jax.profiler.TraceAnnotation(name):  # For profiles of the host.
                yield
        finally:
            self._stack.pop()
            elapsed = time.perf_counter() - started
            own = elapsed - frame[1]
            self._seconds[name] = self._seconds.get(name, 0.0) + own
            if self._stack:
                self._stack[-1][1] += elapsed

    def wall(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def split(self) -> dict[str, float]:
        """Seconds by cause, "compute" included."""
        claimed = sum(self._seconds.values())
        return {"compute": max(0.0, self.wall() - claimed), **self._seconds}


@runtime_checkable
class Writer(Protocol):
    """A writer of scalars. Those of `clu.metric_writers` fit this protocol.

    If it has methods `flush` and `close`, they are called too.
    """

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Writes one step's scalars."""


class JsonlWriter:
    """Writes one line with a JSON object for each step.

    A restart at step s first removes lines after s and an incomplete last line, so that
    no step is logged twice. A damaged file is copied to `metrics.jsonl.damaged-N`; its
    sound lines stay. A warning names steps that are missing from the log.

    Args:
      path: file to append to.
      resume_at: step at which the run resumes.
      evaluated: whether the evaluation due at that step is done; if not, its scalars
        are removed.
      logged: steps logged up to `resume_at`, as stored in the checkpoint; None without
        a checkpoint, or with one of an earlier version.
      lock: of the run; see `appending.GrowingObject`.

    Raises:
      OSError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: paths.Place,
        resume_at: int,
        *,
        evaluated: bool = True,
        logged: logged_steps.State | None = None,
        lock: locks.Lock | None = None,
    ):
        self.path = path
        self.logged = logged_steps.LoggedSteps()
        self._last: dict[str, Any] = {}
        content = path.read_bytes() if path.exists() else None
        records, bad_lines = _read_lines(content or b"")
        # Last step in the file, which may be later than `resume_at`.
        self.reached = max((record["step"] for record, _ in records), default=0)
        kept = []
        for whole, line in records:
            record = {
                name: value
                for name, value in whole.items()
                if logged_steps.is_kept(whole["step"], name, resume_at, evaluated)
            }
            # A record of only "step" belongs to a step that is repeated.
            if len(record) > 1:
                kept.append(line if record == whole else _line(record))
                self._last = record
                self._count(record)
        self._explain(content, bad_lines, logged_steps.LoggedSteps(logged))
        if content is not None:
            appending.replace_content(path, content, b"".join(kept))
        self._last_line = kept[-1] if kept else b""
        self._file = appending.open_log(path, lock)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Appends {"step": step, **scalars}; floats keep every digit.

        Scalars of the step written last are merged into its line.

        Raises:
          OSError: the disk is full, for instance. The line stays buffered; the next
            write tries again.
        """
        record: dict[str, float | str] = {"step": int(step)}
        previous_line = b""
        if self._last.get("step") == step:
            record, previous_line = dict(self._last), self._last_line
        record |= {name: _plain(value) for name, value in scalars.items()}
        self._last, self._last_line = record, _line(record)
        self._count(record)
        self._file.append(self._last_line, replacing=previous_line)

    def flush(self) -> None:
        """Writes buffered lines to the disk.

        Raises:
          OSError: the write failed.
        """
        self._file.flush()

    def close(self) -> None:
        """Writes buffered lines and closes the file, also if the write fails.

        Raises:
          OSError: the write failed.
        """
        self._file.close()

    def _count(self, record: Mapping[str, Any]) -> None:
        for name in record:
            group = name.partition("/")[0]
            if group not in ("step", "timing"):
                self.logged.add(group, record["step"])

    def _explain(
        self,
        content: bytes | None,
        bad_lines: Sequence[int],
        expected: logged_steps.LoggedSteps,
    ) -> None:
        """Logs what is wrong with the file, and keeps a copy of a damaged one."""
        missing = logged_steps.describe(expected.missing_from(self.logged))
        if not bad_lines and not missing:
            return
        if content is None:
            state = f"{self.path} is missing"
        else:
            copy = appending.set_aside(self.path, self.path.name + ".damaged-{}")
            numbers = ", ".join(map(str, bad_lines[:5]))
            numbers += " ..." if len(bad_lines) > 5 else ""
            fault = f"is damaged in line {numbers}" if bad_lines else "is not complete"
            state = f"{self.path} {fault}; it was copied to {copy.name}"
        logging.warning(
            "%s. The run goes on. Steps missing from the log: %s.",
            state,
            missing or ("unknown" if not expected.state() else "none"),
        )


def _read_lines(content: bytes) -> tuple[list[tuple[dict, bytes]], list[int]]:
    """(record, line) of each sound line, and the numbers of damaged lines, from 1.

    A last line without a newline, as left by a kill, is in neither list.
    """
    records, bad_lines = [], []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            record = json_text.parse(line)
            if not isinstance(record["step"], int):
                raise ValueError
            records.append((record, line + b"\n"))
        except (ValueError, KeyError, TypeError):
            bad_lines.append(number)
    return records, bad_lines


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _plain(value: ArrayLike) -> float | str:
    number = np.asarray(value).item()
    is_finite = not isinstance(number, float) or math.isfinite(number)
    return number if is_finite else str(number)


class ProgressLine:
    """A rich progress bar on a terminal, plain log lines elsewhere.

    Args:
      total_steps: last step of the run.
      start: step at which it starts.
      interactive: whether to draw a bar; None: if standard output is a terminal.
    """

    def __init__(self, total_steps: int, start: int, interactive: bool | None = None):
        self._total = total_steps
        if interactive is None:
            interactive = sys.stdout.isatty()
        self._bar: progress.Progress | None = None
        if interactive:
            self._bar = progress.Progress(
                progress.TextColumn("step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(bar_width=20),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[text]}"),
            )
            self._task = self._bar.add_task("train", total=total_steps, text="")
            self._bar.update(self._task, completed=start)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar; without a bar, does nothing."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, text: str) -> None:
        """Shows the numbers of a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            logging.info("step %d/%d  %s", step, self._total, text)

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            logging.info("%s", text)

    def close(self) -> None:
        """Stops the bar and restores the terminal."""
        if self._bar is not None:
            self._bar.stop()
