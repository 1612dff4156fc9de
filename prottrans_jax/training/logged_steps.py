"""The steps that a log holds, compact enough for every checkpoint's metadata."""

from collections.abc import Iterable, Mapping, Sequence

# Group of scalars ("train", or a validation set) to its steps as [first, last, stride].
Scalars = Mapping[str, float]
State = Mapping[str, Sequence[Sequence[int]]]


class LoggedSteps:
    """Steps by group, as arithmetic progressions.

    >>> steps = LoggedSteps()
    >>> for step in (100, 200, 300): steps.add("train", step)
    >>> steps.state()
    {'train': [[100, 300, 100]]}

    Args:
      state: from a checkpoint; see the method `state`.
    """

    def __init__(self, state: State | None = None):
        self._runs = {
            group: [list(run) for run in runs] for group, runs in (state or {}).items()
        }

    def add(self, group: str, step: int) -> None:
        """Adds a step; it is ignored unless it is later than all steps of its group."""
        runs = self._runs.setdefault(group, [])
        if runs and step <= runs[-1][1]:
            return
        if runs and runs[-1][0] == runs[-1][1]:
            runs[-1][1:] = [step, step - runs[-1][0]]
        elif runs and step == runs[-1][1] + runs[-1][2]:
            runs[-1][1] = step
        else:
            runs.append([step, step, 1])

    def state(self) -> dict[str, list[list[int]]]:
        """The steps as JSON."""
        return {
            group: [list(run) for run in runs] for group, runs in self._runs.items()
        }

    def missing_from(self, other: "LoggedSteps") -> dict[str, list[int]]:
        """Steps by group that are in self and not in `other`."""
        missing = {}
        for group in self._runs:
            absent = sorted(self._steps(group) - other._steps(group))
            if absent:
                missing[group] = absent
        return missing

    def _steps(self, group: str) -> set[int]:
        runs = self._runs.get(group, [])
        return {
            step
            for first, last, stride in runs
            for step in range(first, last + 1, stride)
        }


def describe(missing: Mapping[str, Iterable[int]]) -> str:
    """Text such as "train 3, 6, 9 ... 60 (20 steps); validation 4"."""
    parts = []
    for group, steps in missing.items():
        listed = list(steps)
        text = ", ".join(map(str, listed))
        if len(listed) > 8:
            first = ", ".join(map(str, listed[:3]))
            text = f"{first} ... {listed[-1]} ({len(listed)} steps)"
        parts.append(f"{group} {text}")
    return "; ".join(parts)


def is_kept(step: int, name: str, resume_at: int, evaluated: bool) -> bool:
    """Whether a logged scalar stays when a run resumes from a checkpoint.

    Args:
      step: of the scalar.
      name: of the scalar, e.g. "train/loss".
      resume_at: step of the checkpoint.
      evaluated: whether the checkpoint was written after the evaluation due at its
        step; if not, that evaluation is repeated.
    """
    if step == resume_at and not evaluated:
        return name.partition("/")[0] in ("step", "train", "timing")
    return step <= resume_at
