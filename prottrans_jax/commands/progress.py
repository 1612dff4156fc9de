"""How far a job is, said now and then: also while one long batch shows nothing new."""

import sys
import threading
import time

from prottrans_jax.commands import console
from prottrans_jax.proteins import plurals

# Seconds between lines: on a terminal, where one line is written again and again; in a
# log, and the first there.
_LIVE_S, _LOG_S, _FIRST_LOG_S = 0.5, 30.0, 10.0


class Lines:
    """Prints `embed.reports.Progress` on stderr; a context that ends its thread.

    Args:
      silent: Whether to print nothing.
      live: Whether stderr is a terminal.
      intervals_s: Seconds between two lines, and until the first; None: by `live`.
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
        self._since = 0.0  # When what is computed now was begun.
        self._is_open = False  # Whether the terminal's line has no end yet.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def show(self, progress) -> None:
        """Takes note of how far the job is; printed when it is time for a line."""
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
    """The line for people.

    Args:
      progress: `embed.reports.Progress`.
      computing_s: For how long what is computed now has been.
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
