"""Faults of FASTA files and of their records, each with file, line and record."""

from collections.abc import Callable, Iterable
import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fault of a record or a file, and its place.

    Attributes:
      path: file.
      line: line, counted from 1, of the offending character if it is known, else of
        the record's header; 0 if no line is at fault.
      name: id of the record; "" if it has none or the whole file is at fault.
      reason: the kind in a few fixed words; summaries count by it.
      detail: the message for the user.
      fatal: whether the file cannot be trusted, so that the problem is never skipped.
    """

    path: str
    line: int
    name: str
    reason: str
    detail: str
    fatal: bool = False

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.detail}"


class FastaError(ValueError):
    """A `Problem` that is not skipped."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self) -> tuple:
        return FastaError, (self.problem,)


def raise_or_report(
    problems: Iterable[Problem], on_problem: Callable[[Problem], None] | None
) -> None:
    """Passes each problem to `on_problem`; raises it if that is None or it is fatal."""
    for problem in problems:
        if on_problem is None or problem.fatal:
            raise FastaError(problem)
        on_problem(problem)
