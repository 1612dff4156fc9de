"""Trials of a drill, and their table."""

from collections.abc import Iterable
import contextlib
import dataclasses
import time


@dataclasses.dataclass(frozen=True)
class Trial:
    """One loss made on purpose.

    Attributes:
      kind: what was done; a row of the table.
      what: the moment, file or bit, for the line of the trial.
      lost: what was lost or wrong; "" if nothing.
    """

    kind: str
    what: str
    lost: str = ""


def report(name: str, trials: Iterable[Trial]) -> list[Trial]:
    """Prints a line for each trial, then the table; returns the trials.

    An interrupt ends the drill; the table then holds the trials before it.
    """
    begin = time.monotonic()
    done: list[Trial] = []
    with contextlib.suppress(KeyboardInterrupt):
        for trial in trials:
            done.append(trial)
            mark = f"LOST: {trial.lost}" if trial.lost else "survived"
            print(f"{len(done):>5}  {trial.kind}: {trial.what}: {mark}", flush=True)
    seconds = time.monotonic() - begin
    print(f"\n{'drill ' + name:<44} trials  survived  lost")
    for kind in sorted({trial.kind for trial in done}):
        print(_row(kind, [trial for trial in done if trial.kind == kind]))
    print(f"{_row('all', done)}  {seconds / max(len(done), 1):.2f} s a trial")
    return done


def _row(name: str, trials: list[Trial]) -> str:
    lost = sum(bool(trial.lost) for trial in trials)
    return f"{name:<44} {len(trials):>6} {len(trials) - lost:>9} {lost:>5}"
