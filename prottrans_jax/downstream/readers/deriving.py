"""Which task the labels of a file are for, and the column that holds them."""

from collections.abc import Sequence
import math

from prottrans_jax.downstream import labelled, published_tasks
from prottrans_jax.downstream.readers import label_values, records
from prottrans_jax.proteins import plurals, tables

# More different labels than this are hardly classes.
MAX_CLASSES = 1000
# A longer label that is as long as its sequence is hardly the name of a class.
_LONGEST_WORD = 20

Choice = tuple[published_tasks.PublishedTask, str, list[str]]


class NoLabelsError(ValueError):
    """No column of a file holds labels of the task."""


def choose(
    found: records.Contents,
    name: str,
    task: labelled.Task | str | None,
    classes: bool | None,
) -> Choice:
    """The task, the column with its labels, and notes; arguments as `label_files.read`.

    Raises:
      ValueError: No column holds labels of the task, or several tasks have labels.
    """
    if isinstance(task, str):
        published = published_tasks.get(task)
    elif task is not None:
        published = published_tasks.PublishedTask(
            task, (tables.column_name(task.name),)
        )
    else:
        names = published_in(found)
        if len(names) > 1:
            raise ValueError(
                f"{name}: the file holds labels of several tasks: {', '.join(names)}. "
                "Choose one (task=, --task)."
            )
        if not names:
            return _derive(found, name, classes)
        published = published_tasks.get(names[0])
    columns = dict.fromkeys(found.columns)
    column = records.first((*published.columns, *records.LABELS), columns)
    if column is None:
        accepted = (*published.columns, *records.LABELS)
        raise NoLabelsError(
            f"{name}: no column holds labels of {published.task.name}: one of "
            f"{', '.join(accepted)}. Its columns: {', '.join(found.columns) or 'none'}."
        )
    return published, column, [f"labels are in the column {column}"]


def published_in(found: records.Contents) -> list[str]:
    """Names of the published tasks that have a column of their own in a file."""
    columns = set(found.columns) - set(records.MASKS)
    return [
        name
        for name, published in published_tasks.TASKS.items()
        if columns & set(published.columns)
    ]


def _derive(found: records.Contents, name: str, classes: bool | None) -> Choice:
    column = records.first(records.LABELS, dict.fromkeys(found.columns))
    if column is None:
        raise NoLabelsError(
            f"{name}: no column holds labels: one of {', '.join(records.LABELS)}, or "
            f"that of a published task. Its columns: "
            f"{', '.join(found.columns) or 'none'}."
        )
    labels = [
        (record.columns[column], len("".join(record.sequence.split())))
        for record in found.records
        if not label_values.is_missing(record.columns.get(column))
    ]
    if not labels:
        raise ValueError(f"{name}: the column {column} is empty.")
    matching = [length for value, length in labels if _is_per_residue(value, length)]
    # A label of residues that has another length must not make a class of its own.
    most = len(matching) > len(labels) / 2 and max(matching) > _LONGEST_WORD
    level = "residue" if len(matching) == len(labels) or most else "protein"
    if level == "residue":
        values = [label_values.per_residue(value) for value, _ in labels]
        numeric = not any(isinstance(v, str) for v in values) and _numeric(
            [item for value in values for item in value]
        )
    else:
        values = [[value] for value, _ in labels]
        numeric = _numeric([value for value, _ in labels])
    names: tuple[str, ...] = ()
    if classes or not numeric:
        different = {str(v) for value in values for v in value}
        names = tuple(sorted(v for v in different if not label_values.is_missing(v)))
    if len(names) > MAX_CLASSES:
        raise ValueError(
            f"{name}: the column {column} has {len(names):,} different labels, more "
            f"than {MAX_CLASSES:,}: {', '.join(names[:3])}, ... Labels of residues "
            "must be as long as the sequence; numbers must be numbers in every record."
        )
    task = labelled.Task(
        column.replace(" ", "_"),
        "residue" if level == "residue" else "protein",
        names,
        "accuracy" if names else "spearman",
        f"column {column} of {name}",
    )
    kind = (
        f"{plurals.count(len(names), 'class', 'classes')}: {', '.join(names[:20])}"
        f"{', ...' if len(names) > 20 else ''}"
        if names
        else "regression"
    )
    note = f"task derived from the column {column}: a label for each {level}; {kind}"
    notes = [note]
    if level == "protein" and len(matching) > len(labels) / 2:
        notes.append(
            f"{len(matching):,} of {plurals.count(len(labels), 'label')} are as long "
            "as their sequence: if labels are of residues, correct the others"
        )
    return published_tasks.PublishedTask(task, (column,)), column, notes


def _is_per_residue(value: object, length: int) -> bool:
    values = label_values.per_residue(value)
    # "0.53" is a number, not four labels of a peptide.
    decimal = isinstance(values, str) and "." in values
    return len(values) == length and not (decimal and _numeric([value]))


def _numeric(values: Sequence[object]) -> bool:
    return all(label_values.number(value) is not None for value in values) and any(
        not math.isnan(label_values.number(value) or 0.0) for value in values
    )
