"""Where the wall time of a run went, summed over all its processes.

Process 0 appends to `goodput.jsonl` what it has spent so far. When a process is killed
and another resumes, the steps after the checkpoint count as lost, and the time between
the last entry of one process and the start of the next as restart. The buckets add up
to the wall time from the first start.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from absl import logging
import jax

from prottrans_jax.files import appending, leases, locks, paths

NAME = "goodput.jsonl"
# Bucket to its cause in `metrics.Stopwatch`.
_CAUSES = {
    "compute": "productive",
    "initialize": "start",
    "compile": "compile",
    "data": "data",
    "checkpoint": "checkpoint",
    "evaluate": "evaluation",
}
BUCKETS = (*_CAUSES.values(), "lost", "restart")
# A kill may lose this much of the account of the last steps, which then counts as
# restart; in a bucket, `appending.UPLOAD_PERIOD_S`.
_PERIOD_S = 1.0


@dataclasses.dataclass
class Account:
    """Seconds by bucket, added up from the entries of `goodput.jsonl`.

    Attributes:
      seconds: bucket to seconds.
      starts: number of processes that trained.
    """

    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(BUCKETS, 0.0)
    )
    starts: int = 0
    # Productive time as (first step, last step, seconds).
    _spans: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    _split: dict[str, float] = dataclasses.field(default_factory=dict)
    _step: int = 0
    _end: float | None = None
    # Whether the last span ends at a checkpoint; if not, the next one extends it.
    _is_saved: bool = True

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry, in the order of the file."""
        step = entry["step"]
        if entry["event"] == "start":
            if self._end is not None:
                self.seconds["restart"] += max(0.0, entry["time"] - self._end)
            self.starts += 1
            self._split = {}
            self._end = max(entry["time"], self._end or 0.0)
        if entry["event"] in ("start", "rewind"):
            self._lose_steps_after(step)
        else:
            self._spend(step, entry["seconds"])
            self._end = entry["time"]
            self._is_saved = entry["checkpoint"]
        self._step = step

    def _spend(self, step: int, split: Mapping[str, float]) -> None:
        for bucket, seconds in split.items():
            spent = max(0.0, seconds - self._split.get(bucket, 0.0))
            self.seconds[bucket] += spent
        spent = max(0.0, split["productive"] - self._split.get("productive", 0.0))
        span = self._step, step, spent
        if self._spans and not self._is_saved:
            first, _, before = self._spans.pop()
            span = first, step, before + spent
        self._spans.append(span)
        self._split = dict(split)

    def _lose_steps_after(self, step: int) -> None:
        kept = []
        for first, last, seconds in self._spans:
            share = 1.0
            if last > step:
                share = max(0, step - first) / max(last - first, 1)
            lost = seconds * (1 - share)
            self.seconds["productive"] -= lost
            self.seconds["lost"] += lost
            if share:
                kept.append((first, min(last, step), seconds - lost))
        self._spans = kept
        self._is_saved = True

    @property
    def wall(self) -> float:
        """Seconds from the start of the first process to the last entry."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the wall time in which steps were computed that were not lost."""
        return self.seconds["productive"] / max(self.wall, 1e-9)

    def scalars(self) -> dict[str, float]:
        """For the logs: the goodput, and seconds by bucket."""
        return {"timing/goodput": self.goodput} | {
            f"timing/run_seconds/{name}": value for name, value in self.seconds.items()
        }


def read(path: paths.Place) -> Account:
    """The account of a run so far; lines that a kill cut short are left out.

    Raises:
      OSError: the file cannot be read.
    """
    account = Account()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            account.add(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
    return account


class Ledger:
    """Writes the account of this process; does nothing on processes other than 0.

    Args:
      path: `goodput.jsonl` of the run.
      split: seconds of this process by cause, as `metrics.Stopwatch.split` gives.
      started: time at which this process started, in seconds since 1970; None: now.
    """

    def __init__(
        self,
        path: paths.Place,
        split: Callable[[], Mapping[str, float]],
        started: float | None = None,
    ):
        self._path = path
        self._split = split
        now = time.time()
        self._started = now if started is None else started
        # Spent before `split` began to count.
        self._before_s = max(0.0, now - self._started - sum(split().values()))
        self._file: appending.AppendedFile | appending.GrowingObject | None = None
        self._account = Account()
        self._last_line = b""
        self._written_at = 0.0
        self._reached = 0
        self._has_begun = False
        self._failed = False

    def begin(self, step: int, lock: locks.Lock | None = None) -> None:
        """Notes that the run goes on from the checkpoint of `step`.

        Call it when this process alone may write to the model directory, and `close`
        before another may. Called again, it notes that the process went back to this
        checkpoint.

        Args:
          step: of the checkpoint.
          lock: of the run; see `appending.GrowingObject`.

        Raises:
          leases.LostError: another process writes to the model directory. `note`
            raises it too.
        """
        if jax.process_index():
            return
        try:
            if not self._has_begun:
                self._account = read(self._path)
            self._file = appending.open_log(self._path, lock)
        except OSError as error:
            self._fail(error)
            return
        if self._has_begun:
            self.note(self._reached, at_checkpoint=True)
            self._write({"event": "rewind", "time": time.time(), "step": step})
        else:
            self._has_begun = True
            self._write({"event": "start", "time": self._started, "step": step})
            self._flush()

    def note(self, step: int, *, at_checkpoint: bool = False) -> None:
        """Writes what was spent up to `step`, at most every second.

        Args:
          step: last step done.
          at_checkpoint: write now, and keep the entry, because the run may resume from
            this step. The next entry replaces others.
        """
        self._reached = step
        now = time.monotonic()
        is_due = at_checkpoint or now - self._written_at >= _PERIOD_S
        if self._file is None or not is_due:
            return
        seconds = dict.fromkeys(_CAUSES.values(), 0.0)
        for cause, value in self._split().items():
            seconds[_CAUSES[cause]] += value
        seconds["start"] += self._before_s
        entry = {
            "event": "steps",
            "time": self._started + sum(seconds.values()),
            "step": step,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "checkpoint": at_checkpoint,
        }
        self._write(entry, keep=at_checkpoint)
        self._written_at = now

    def _write(self, entry: dict[str, Any], *, keep: bool = True) -> None:
        assert self._file is not None
        self._account.add(entry)
        line = json.dumps(entry).encode()
        # A shorter line would leave the end of the one that it replaces.
        line = line.ljust(len(self._last_line) - 1) + b"\n"
        replaced, self._last_line = self._last_line, b"" if keep else line
        try:
            self._file.append(line, replacing=replaced)
        except leases.LostError:
            raise
        except OSError as error:
            self._fail(error)

    def _flush(self) -> None:
        """Uploads the start at once: a kill within a minute must not hide it."""
        assert self._file is not None
        try:
            self._file.flush()
        except leases.LostError:
            raise
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            logging.error(
                "%s could not be written (%s). The run goes on; the sums of time over "
                "its restarts are not complete.",
                *(self._path, error.strerror),
            )
        self._failed = True

    @property
    def account(self) -> Account:
        """The account of the whole run so far."""
        return self._account

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except leases.LostError:
            pass  # The account is now written by another process.
        except OSError as error:
            self._fail(error)


def process_start() -> float | None:
    """When this process was started, in seconds since 1970; None: not known."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(pathlib.Path("/proc/uptime").read_text().split()[0])
        # Field 22 of the whole line; the first of `fields` is field 3.
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # Not Linux.
        return None
    return time.time() - (uptime_s - started_s)
