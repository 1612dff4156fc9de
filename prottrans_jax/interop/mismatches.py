"""Describes how the arrays of a model and of a checkpoint differ, in a few lines."""

from collections.abc import Sequence
import dataclasses
import itertools
import re

# Maximum number of lines in an error message.
_MAX_LINES = 5


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Differing arrays, a line each; false if there are none.

    A line begins with "- ", "+ " or "! " and the name of the array.

    Attributes:
      wrong: Arrays in both, of different shape or kind.
      missing: Arrays in the model only.
      extra: Arrays in the checkpoint only.
    """

    wrong: Sequence[str] = ()
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.wrong or self.missing or self.extra)

    def listing(self) -> str:
        """All lines."""
        lines = [*self.missing, *self.extra, *self.wrong]
        return f"{_KEY}:\n  " + "\n  ".join(lines)

    def summary(self, remedy: str) -> str:
        """The five most informative lines, the number of all lines, and the remedy."""
        wrong, missing, extra = len(self.wrong), len(self.missing), len(self.extra)
        return (
            f"{_KEY}:\n  "
            + "\n  ".join(_most_telling(self.wrong, self.missing, self.extra))
            + f"\n{wrong + missing + extra} in all: {wrong} of another shape, "
            f"{missing} in the model only, {extra} in the checkpoint only. {remedy}"
        )


_KEY = "(- in model only, + in checkpoint only, ! other shape)"


def _most_telling(*kinds: Sequence[str]) -> list[str]:
    """At most five lines, from each kind, with one line for all equal layers."""
    different: list[list[str]] = []
    for lines in kinds:
        by_pattern: dict[str, str] = {}
        for line in lines:
            by_pattern.setdefault(re.sub(r"\d+", "#", line.partition(" (")[0]), line)
        different.append(list(by_pattern.values()))
    rounds = itertools.zip_longest(*different)
    shown = [line for lines in rounds for line in lines if line is not None]
    chosen = set(shown[:_MAX_LINES])
    return [line for lines in different for line in lines if line in chosen]
