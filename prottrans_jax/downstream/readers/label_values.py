"""From the columns of a record to residues, labels and mask of a task."""

from collections.abc import Mapping, Sequence
import json
import math
import re

from jaxtyping import Bool, Float32, Int32
import numpy as np

from prottrans_jax.downstream import labelled
from prottrans_jax.downstream.readers import records
from prottrans_jax.proteins import vocabulary

_SEPARATORS = re.compile(r"[\s;,]+")
_LETTERS = frozenset(vocabulary.LETTERS)
_UNRESOLVED = ("0", "0.0", "false", "")
_RESOLVED = ("1", "1.0", "true")
# Texts for a label that is missing.
MISSING = ("", "nan", "none", "null", "na")


def residues(record: records.Record) -> str:
    """Residues of a record in upper case, without white space.

    DeepLoc's CSV of ProtTrans separates residues by blanks, and joins the two at line
    ends of the original file (its "two-character residues").

    Raises:
      ValueError: The sequence is empty, or has a character that is no residue.
    """
    sequence = "".join(record.sequence.split()).upper()
    if not sequence:
        raise ValueError(record.problem("the sequence is empty."))
    if not set(sequence) <= _LETTERS:
        at, letter = next((k, x) for k, x in enumerate(sequence) if x not in _LETTERS)
        raise ValueError(
            record.problem(
                f"{letter!r} at position {at + 1} of the sequence is no residue. Gaps "
                "and stops are not removed, because residues and labels must match. "
                f"Allowed: {vocabulary.LETTERS}."
            )
        )
    return sequence


def per_residue(value: object) -> Sequence[object]:
    """A value for each residue: items of a list, separated words, or characters."""
    if isinstance(value, list):
        return value
    text = str(value).strip()
    if text.startswith("["):
        try:
            return list(json.loads(text.replace("nan", "NaN")))
        except (ValueError, RecursionError):
            return text
    if _SEPARATORS.search(text):
        return [word for word in _SEPARATORS.split(text) if word]
    return text


def is_missing(value: object) -> bool:
    """Whether there is no label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in MISSING


def number(value: object) -> float | None:
    """The number that a value stands for; NaN: missing; None: it is no number."""
    if is_missing(value):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def numbers(
    record: records.Record, values: Sequence[object], missing: float | None
) -> Float32[np.ndarray, " length"]:
    """Labels of a regression; NaN where `missing` or no number stands.

    Raises:
      ValueError: A value is not a finite number.
    """
    found = np.empty(len(values), np.float32)
    for at, value in enumerate(values):
        converted = number(value)
        if converted is None or math.isinf(converted):
            raise ValueError(
                record.problem(
                    f"label {value!r}{_at(at, values)} is not a finite number. Leave "
                    "it empty (JSON: null) if there is none."
                )
            )
        found[at] = math.nan if converted == missing else converted
    return found


def classes(
    record: records.Record,
    values: Sequence[object],
    indices: Mapping[str, int],
    task: labelled.Task,
) -> Int32[np.ndarray, " length"]:
    """Indices of classes; NO_CLASS where `indices` says so or the label is missing.

    Args:
      record: For messages.
      values: The labels.
      indices: Index of each spelling of a class.
      task: For messages.

    Raises:
      ValueError: A value is none of these spellings.
    """
    try:
        return np.array([indices[str(value)] for value in values], np.int32)
    except KeyError:
        pass
    found = np.empty(len(values), np.int32)
    for at, value in enumerate(values):
        index = indices.get(str(value))
        if index is None and is_missing(value):
            index = labelled.NO_CLASS
        if index is None:
            raise ValueError(
                record.problem(
                    f"label {str(value)!r}{_at(at, values)} is no class of "
                    f"{task.name}: {', '.join(task.classes)}. (A column named label "
                    "has its own classes.)"
                )
            )
        found[at] = index
    return found


def mask(
    record: records.Record, column: str, length: int
) -> Bool[np.ndarray, " length"]:
    """Where the labels count: a 1 or 0 for each residue.

    Raises:
      ValueError: It has another length than the sequence, or another value.
    """
    values = per_residue(record.columns[column])
    check_length(record, column, len(values), length)
    if isinstance(values, str) and set(values) <= {"0", "1"}:
        return np.frombuffer(values.encode(), np.uint8) == ord("1")
    found = np.zeros(length, bool)
    for at, value in enumerate(values):
        text = "1" if value is True else "0" if value is False else str(value).lower()
        if text not in (*_RESOLVED, *_UNRESOLVED):
            raise ValueError(
                record.problem(
                    f"{value!r}{_at(at, values)} of {column} is neither 1 (the label "
                    "counts) nor 0."
                )
            )
        found[at] = text in _RESOLVED
    return found


def check_length(record: records.Record, column: str, length: int, wanted: int) -> None:
    """Raises ValueError if a column has not a value for each residue."""
    if length != wanted:
        raise ValueError(
            record.problem(
                f"{column} has {length:,} values, the sequence {wanted:,} residues. "
                "Give one for each residue: a string as long as the sequence, or "
                "values separated by blanks, commas or semicolons."
            )
        )


def _at(at: int, values: Sequence[object]) -> str:
    return f" at residue {at + 1}" if len(values) > 1 else ""
