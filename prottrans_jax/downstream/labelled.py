"""Labelled proteins, and the task that their labels belong to."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

from jaxtyping import Bool, Float, Int
import numpy as np

# Label of a class of a residue or protein that has none; its weight is 0.
NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Task:
    """What a head predicts.

    Attributes:
      name: Name, also on the command line, e.g. "secondary_structure_3".
      level: "residue": a label for each residue; "protein": one for each protein.
      classes: Names of the classes, in the order of their indices; empty for a
        regression.
      metric: Name of the main metric, a key of `prediction_metrics.METRICS`.
      source: Publication or file that defines the classes and their order.
    """

    name: str
    level: Literal["residue", "protein"]
    classes: tuple[str, ...]
    metric: str
    source: str = ""

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers rather than classes."""
        return not self.classes

    @property
    def num_outputs(self) -> int:
        """Outputs of a head: one for each class; one for a regression."""
        return len(self.classes) or 1


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledProtein:
    """A protein with its labels for one task.

    Attributes:
      id: Its id in the file.
      residues: Its residues, one letter each, upper case.
      labels: Classes as int32 (NO_CLASS: none) or numbers as float32 (NaN: none):
        [length] if the task is of residues, [] if it is of proteins.
      mask: [length] for tasks of residues: False where the label does not count, e.g.
        unresolved residues. None: every label that is there counts.
      split: Name of the split, as in the file: "train", "val", "test", "casp12".
      place: "FILE:LINE" of the record, or "FILE: record N", for messages.
    """

    id: str
    residues: str
    labels: Int[np.ndarray, "*length"] | Float[np.ndarray, "*length"]
    mask: Bool[np.ndarray, " length"] | None
    split: str
    place: str

    @property
    def counts(self) -> Bool[np.ndarray, "*length"]:
        """Where a label is there and counts in loss and metrics."""
        if np.issubdtype(self.labels.dtype, np.floating):
            known = ~np.isnan(self.labels)
        else:
            known = self.labels != NO_CLASS
        return np.asarray(known if self.mask is None else known & self.mask)


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """The labelled proteins of a task, as read from one or more files.

    Attributes:
      task: The task.
      proteins: In the order of the files.
      notes: A line for each thing that a reader left out or decided, with its count,
        e.g. "1,022 proteins with an unknown label ('U') left out (unknown=drop)".
    """

    task: Task
    proteins: Sequence[LabelledProtein]
    notes: Sequence[str] = ()

    def split(self, *names: str) -> "LabelledSet":
        """The proteins of some splits.

        Raises:
          ValueError: A split has no protein; lists the splits that there are.
        """
        chosen = [p for p in self.proteins if p.split in names]
        missing = set(names) - {p.split for p in chosen}
        if missing:
            known = sorted({p.split for p in self.proteins})
            raise ValueError(
                f"{self.task.name} has no split {', '.join(sorted(missing))}; "
                f"its splits: {', '.join(known)}."
            )
        return dataclasses.replace(self, proteins=chosen)


def joined(*sets: LabelledSet) -> LabelledSet:
    """Several sets of one task as one, e.g. of files of which each holds a split.

    Raises:
      ValueError: The tasks differ.
    """
    tasks = {(s.task.name, s.task.level, s.task.classes) for s in sets}
    if len(tasks) != 1:
        names = ", ".join(sorted({s.task.name for s in sets})) or "none"
        raise ValueError(
            f"sets of different tasks, or classes in another order, cannot be joined: "
            f"{names}."
        )
    return LabelledSet(
        sets[0].task,
        [protein for s in sets for protein in s.proteins],
        [note for s in sets for note in s.notes],
    )
