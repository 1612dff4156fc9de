"""What a run says of itself: sums to means, time by cause, and where it is written."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, Protocol

from absl import logging
import numpy as np
from rich import progress

Scalars = Mapping[str, float]


class SumAccumulator:
    """Adds up (total, weight) pairs on the host in float64, in the order given.

    Its state is JSON, goes into checkpoints, and comes back to the bit: a window of
    steps that a restart cuts in two is logged as if it had not been cut.
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

    Causes nest (a checkpoint inside an evaluation); each second counts for the
    innermost one, and what no cause claims counts as "compute". The parts add up to
    the wall time.
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


class Writer(Protocol):
    """Where scalars go. `clu.metric_writers` have this shape too."""

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Writes one step's scalars."""

    def flush(self) -> None:
        """Makes what was written visible to others."""


class JsonlWriter:
    """One JSON object a line and step, next to the checkpoints.

    A restart at step s drops the lines after s first: a step is never logged twice,
    and a line cut by a kill goes with them.

    Args:
      path: file to append to.
      resume_at: step from which the run goes on.
    """

    def __init__(self, path: pathlib.Path, resume_at: int):
        self._path = path
        kept = [
            line
            for line in _complete_lines(path)
            if json.loads(line)["step"] <= resume_at
        ]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Appends {"step": step, **scalars}; floats keep every digit."""
        record: dict[str, float | str] = {"step": int(step)}
        record |= {name: _plain(value) for name, value in scalars.items()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Pushes the lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def _complete_lines(path: pathlib.Path) -> Iterator[str]:
    if path.exists():
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield line


def _plain(value: Any) -> float | str:
    value = np.asarray(value).item()
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


class ProgressLine:
    """A rich progress bar on a terminal, plain log lines elsewhere.

    Args:
      total_steps: where the run ends.
      start: step at which it starts.
      interactive: None asks standard output.
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
        """Moves the bar; silent elsewhere."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, text: str) -> None:
        """Shows the numbers of a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            logging.info("step %d/%d  %s", step, self._total, text)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            logging.info("%s", text)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
