"""Reads a file of labelled proteins in any known format, for one task."""

from collections import Counter
from collections.abc import Callable, Mapping
import dataclasses
import os
import re

from jaxtyping import Bool
import numpy as np

from prottrans_jax.downstream import labelled, published_tasks
from prottrans_jax.downstream.readers import (
    delimited,
    deriving,
    flip_folders,
    json_lines,
    label_values,
    labelled_fasta,
    records,
    text_files,
)
from prottrans_jax.files import paths
from prottrans_jax.proteins import kinds, plurals

# Name -> what it is.
FORMATS = {
    "jsonl": "JSON Lines",
    "table": "CSV or TSV with a row that names the columns",
    "netsurfp": "NetSurfP-2.0's CSV of ProtTrans",
    "flip": "FLIP: CSV of proteins, or folder of FASTA files of residues",
    "biotrainer": "FASTA with TARGET= in its headers (biotrainer, PBC, FLIP)",
    "deeploc": "DeepLoc 1.0's FASTA",
}
# Rule -> which residues count.
MASK_RULES = {
    "resolved": "those that the mask of the file marks; all if it has no mask",
    "cb513": "those marked in the column cb513_mask; some are unresolved, and their "
    "label is C",
    "cb513_resolved": "both",
    "none": "all",
}
# Rules for labels that name no class of the task; or the name of a class.
UNKNOWN_RULES = ("drop", "keep")
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,6})+$")


def contents(place: str | os.PathLike, format: str = "auto") -> records.Contents:
    """The records of a file, or of FLIP's folder, before a task is chosen.

    Args:
      place: File on this machine or in a bucket, plain or compressed.
      format: A key of `FORMATS`; "auto": recognised from the content.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is damaged, or not in the format.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"there is no format {format!r}; formats: auto, {', '.join(FORMATS)}."
        )
    where = paths.place(place, "labels")
    found = flip_folders.read(where) if where.is_dir() else _of_file(where)
    if format not in ("auto", found.format):
        # A published table may be read as a plain one.
        if not (format == "table" and found.format in ("netsurfp", "flip")):
            raise ValueError(
                f"{where}: this is {FORMATS[found.format]}, format {found.format}, not "
                f"{format}."
            )
        found = dataclasses.replace(found, format=format)
    if not found.records:
        raise ValueError(f"{where}: the file holds no proteins.")
    return found


def _of_file(place: paths.Place) -> records.Contents:
    lines = text_files.lines(place)
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise ValueError(f"{place}: the file is empty.")
    stem = _SUFFIX.sub("", place.name) or place.name
    if first.startswith((">", ";")):
        return labelled_fasta.read(str(place), stem, lines)
    if first.lstrip().startswith("{"):
        return json_lines.read(str(place), stem, lines)
    if not delimited.header(lines[0])[0]:
        kind = kinds.describe(first[: kinds.START_BYTES].encode())
        if kind:
            raise ValueError(f"{place}: {kind}")
    return delimited.read(str(place), stem, lines)


def read(
    place: str | os.PathLike,
    format: str = "auto",
    task: labelled.Task | str | None = None,
    *,
    unknown: str = "drop",
    mask: str = "resolved",
    split: str = "",
    classes: bool | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> labelled.LabelledSet:
    """Reads labelled proteins for a task.

    Args:
      place: File on this machine or in a bucket, plain or compressed, or FLIP's folder.
      format: A key of `FORMATS`; "auto": recognised from the content.
      task: Name of a published task; or a task; None: the only published task whose
        labels the file holds, or else derived from its labels.
      unknown: What becomes of proteins whose label names no class, e.g. DeepLoc's "U":
        "drop": left out; "keep": without label; or the class that they get, e.g.
        "soluble".
      mask: A key of `MASK_RULES`.
      split: Split of proteins for which the file gives none; "": "all".
      classes: For a derived task: True: labels are classes, even if they are numbers;
        None: numbers are a regression.
      on_problem: Called with each record that cannot be used, which is left out; None:
        the first is raised.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file, or with `on_problem=None` a record, cannot be used; names
        file, line and record.
    """
    if mask not in MASK_RULES:
        raise ValueError(f"there is no mask {mask!r}; masks: {', '.join(MASK_RULES)}.")
    return labels_of(
        contents(place, format),
        str(place),
        task,
        unknown=unknown,
        mask=mask,
        split=split,
        classes=classes,
        on_problem=on_problem,
    )


def labels_of(
    found: records.Contents,
    name: str,
    task: labelled.Task | str | None = None,
    *,
    unknown: str = "drop",
    mask: str = "resolved",
    split: str = "",
    classes: bool | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> labelled.LabelledSet:
    """As `read`, of contents that were read from the file `name`."""
    notes = [f"{name}: {FORMATS[found.format]}", *found.notes]
    published, column, derived = deriving.choose(found, name, task, classes)
    notes += derived
    if unknown not in (*UNKNOWN_RULES, *published.task.classes):
        raise ValueError(
            f"there is no rule {unknown!r} for unknown labels; rules: "
            f"{', '.join((*UNKNOWN_RULES, *published.task.classes))}."
        )
    reader = _Reader(
        published, column, unknown, mask, split or "all", indices(published), Counter()
    )
    reader.check_columns(found, name)
    proteins = []
    problems = 0
    for record in found.records:
        try:
            protein = reader.protein(record)
        except ValueError as error:
            if on_problem is None:
                raise
            on_problem(str(error))
            problems += 1
            continue
        if protein is not None:
            proteins.append(protein)
    if problems:
        notes.append(f"{plurals.count(problems, 'record')} left out for problems")
    notes += reader.notes(found, proteins)
    return labelled.LabelledSet(published.task, proteins, tuple(notes))


def _repeated_ids(proteins: list[labelled.LabelledProtein]) -> list[str]:
    """A note if proteins of a split have the same id; `leaks` compares splits."""
    places: dict[tuple[str, str], list[str]] = {}
    for protein in proteins:
        places.setdefault((protein.split, protein.id), []).append(protein.place)
    repeated = {key: found for key, found in places.items() if len(found) > 1}
    if not repeated:
        return []
    ids = plurals.count(len(repeated), "id")
    (split, name), found = next(iter(repeated.items()))
    return [
        f"{ids} of several proteins of the same split, all kept; the first is {name} "
        f"({split}, {', '.join(found[:3])})"
    ]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Makes proteins of records, and counts its decisions."""

    published: published_tasks.PublishedTask
    column: str
    unknown: str
    mask: str
    split: str
    indices: Mapping[str, int]
    counts: Counter

    def check_columns(self, found: records.Contents, name: str) -> None:
        if self.mask.startswith("cb513") and "cb513 mask" not in found.columns:
            raise ValueError(
                f"{name}: mask={self.mask} needs the column cb513_mask; its columns: "
                f"{', '.join(found.columns)}."
            )

    def protein(self, record: records.Record) -> labelled.LabelledProtein | None:
        """The protein of a record; None: left out by a rule."""
        residues = label_values.residues(record)
        split = records.split_of(record.columns)
        if split.lower() == "nan":
            # FLIP's proteins that are in no split.
            self.counts["no split"] += 1
            return None
        value = record.columns.get(self.column)
        task = self.published.task
        if task.level == "residue" and not label_values.is_missing(value):
            values = label_values.per_residue(value)
            label_values.check_length(record, self.column, len(values), len(residues))
        elif task.level == "residue":
            values = [None] * len(residues)
        else:
            values = [value]
        if task.is_regression:
            labels = label_values.numbers(record, values, self.published.missing)
            missing = bool(np.isnan(labels).all())
        else:
            labels = label_values.classes(record, values, self.indices, task)
            missing = bool((labels == labelled.NO_CLASS).all())
            self._count_aliases(values)
        if missing and label_values.is_missing(value):
            self.counts["no label"] += 1
            if self.unknown != "keep":
                return None
        elif missing and task.level == "protein":
            self.counts[f"unknown {value}"] += 1
            if self.unknown == "drop":
                return None
            if self.unknown != "keep":
                labels[0] = task.classes.index(self.unknown)
        return labelled.LabelledProtein(
            record.id,
            residues,
            labels if task.level == "residue" else labels.reshape(()),
            self._mask(record, len(residues)),
            split or self.split,
            record.place,
        )

    def _count_aliases(self, values) -> None:
        aliases = self.published.aliases
        if self.published.task.level == "residue" and aliases:
            for value in set(map(str, values)) & set(aliases):
                self.counts[f"alias {value}"] += sum(str(v) == value for v in values)

    def _mask(
        self, record: records.Record, length: int
    ) -> Bool[np.ndarray, " length"] | None:
        if self.published.task.level == "protein" or self.mask == "none":
            return None
        names = []
        if self.published.uses_mask and self.mask != "cb513":
            # NetSurfP's column has 1 for residues that are resolved.
            resolved = (*records.MASKS, *(("disorder",) * ("dssp3" in record.columns)))
            names += [n for n in (records.first(resolved, record.columns),) if n]
        if self.mask.startswith("cb513"):
            names.append("cb513 mask")
        masks = [label_values.mask(record, name, length) for name in names]
        return np.logical_and.reduce(masks) if masks else None

    def notes(
        self, found: records.Contents, proteins: list[labelled.LabelledProtein]
    ) -> list[str]:
        """What was decided, with counts."""
        notes = []
        splits = {protein.split for protein in proteins}
        if splits == {self.split} and not records.first(
            records.SPLITS, dict.fromkeys(found.columns)
        ):
            if found.format != "deeploc":
                notes.append(f"no column of splits: all proteins are {self.split!r}")
        elif len(splits) > 1 and "train" not in splits:
            notes.append(
                f"no split is named train; the splits: {', '.join(sorted(splits))}"
            )
        masks = [p.mask for p in proteins if p.mask is not None]
        if masks:
            total = sum(map(len, masks))
            counted = int(sum(mask.sum() for mask in masks))
            notes.append(
                f"{total - counted:,} of {total:,} residues do not count "
                f"(mask={self.mask})"
            )
        for key, number in sorted(self.counts.items()):
            notes.append(self._note(key, number))
        return [*notes, *_repeated_ids(proteins)]

    def _note(self, key: str, number: int) -> str:
        proteins = plurals.count(number, "protein")
        kind, _, value = key.partition(" ")
        if key == "no split":
            return f"{proteins} in no split (SET=nan) left out"
        if key == "no label":
            done = "kept without it" if self.unknown == "keep" else "left out"
            return f"{proteins} without a label {done} (unknown={self.unknown})"
        if kind == "alias":
            labels = plurals.count(number, "label")
            return f"{labels} {value!r} read as {self.published.aliases[value]}"
        done = {"drop": "left out", "keep": "kept without label"}.get(
            self.unknown, f"read as {self.unknown}"
        )
        return (
            f"{proteins} with the unknown label {value!r} {done} "
            f"(unknown={self.unknown})"
        )


def indices(published: published_tasks.PublishedTask) -> dict[str, int]:
    """Index of every spelling of a class; NO_CLASS for labels that are unknown."""
    classes = published.task.classes
    found = {name: index for index, name in enumerate(classes)}
    found |= {alias: found[name] for alias, name in published.aliases.items()}
    return found | dict.fromkeys(published.unknown, labelled.NO_CLASS)
