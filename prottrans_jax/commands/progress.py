"""Prints the progress of a job regularly, also during one long batch."""

import sys
import threading
import time

from prottrans_jax.commands import console
from prottrans_jax.proteins import plurals

# Seconds between updates of the line on a terminal; between lines of a log, and before
# the first of them.
_LIVE_S, _LOG_S, _FIRST_LOG_S = 0.5, 30.0, 10.0


class Lines:
    """Prints `embed.reports.Progress` on stderr from a thread, which the context ends.

    Args:
      silent: Whether to print nothing.
      live: Whether stderr is a terminal.
      intervals_s: Seconds between two lines, and until the first; None: depends on
        `live`.
    """

    def __init__(
        self,
        *,
        silent: bool,
        live: bool | None = None,
        intervals_s: tuple[float, float] | None = None,
    ):
        self._silent = silent
        self._live = sys.stderr.isatty() if live is None else live
        usual = (_LIVE_S, _LIVE_S) if self._live else (_LOG_S, _FIRST_LOG_S)
        self._interval, self._first = intervals_s or usual
        self._latest = None
        self._since = 0.0  # Start of the current computation.
        self._is_open = False  # Whether the terminal's line still needs a newline.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def show(self, progress) -> None:
        """Sets the progress that the next line shows."""
        with self._lock:
            latest = self._latest
            if latest is None or latest.computing != progress.computing:
                self._since = time.monotonic()
            self._latest = progress

    def __enter__(self) -> "Lines":
        if not self._silent:
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._ended.set()
        if self._silent:
            return
        self._thread.join()
        if self._live and self._latest is not None:
            self._print()
        if self._is_open:
            print(file=sys.stderr, flush=True)

    def _repeat(self) -> None:
        wait = self._first
        while not self._ended.wait(wait):
            if self._latest is not None:
                self._print()
                wait = self._interval

    def _print(self) -> None:
        with self._lock:
            line = text(self._latest, time.monotonic() - self._since)
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._is_open = True
        else:
            console.say(line)


def text(progress, computing_s: float) -> str:
    """The progress line.

    Args:
      progress: `embed.reports.Progress`.
      computing_s: Seconds since the current computation began.
    """
    share = 100 * progress.residues / max(progress.of_residues, 1)
    parts = [
        f"{progress.proteins:,} of {plurals.count(progress.of_proteins, 'protein')}",
        f"{share:.1f} % of residues",
    ]
    if progress.seconds_left is not None and progress.residues < progress.of_residues:
        parts.append(f"{progress.residues_per_second:,.0f} residues/s")
        parts.append(f"{console.duration(progress.seconds_left)} left")
    if progress.computing:
        seconds = f" for {console.duration(computing_s)}" if computing_s >= 5 else ""
        parts.append(f"computing {progress.computing}{seconds}")
    return ", ".join(parts)
