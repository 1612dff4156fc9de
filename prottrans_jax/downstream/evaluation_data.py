"""The labelled proteins of an evaluation, read from a data folder."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from prottrans_jax.downstream import evaluation_sets, labelled, leaks, readers
from prottrans_jax.files import paths

TRAIN, VALIDATION = "train", "validation"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which proteins of the files are taken.

    Attributes:
      max_residues: Longer proteins are left out; None: no limit.
      max_proteins: Training and validation proteins together, drawn at random, nine
        tenths for training; None: all.
      max_test_proteins: Proteins of each test set, drawn at random; None: all.
      seed: Of the draw.
    """

    max_residues: int | None = None
    max_proteins: int | None = None
    max_test_proteins: int | None = None
    seed: int = 42


@dataclasses.dataclass(frozen=True)
class Data:
    """The labelled proteins of an evaluation.

    Attributes:
      splits: "train", "validation" and each test set.
      notes: What readers left out and decided, and which test sets have no file.
    """

    splits: Mapping[str, labelled.LabelledSet]
    notes: Sequence[str]


def read(
    evaluation: evaluation_sets.Evaluation, folder: paths.Place, limits: Limits
) -> Data | str:
    """The proteins of an evaluation, or a line that says which data are missing.

    Args:
      evaluation: Which files and splits.
      folder: The data folder; see `evaluation_sets.find`.
      limits: Which of the proteins are taken.

    Raises:
      ValueError: A file cannot be used; names it.
    """
    parts = {TRAIN: evaluation.train, VALIDATION: evaluation.validation}
    tests = {n: p for n, p in evaluation.tests.items() if n != VALIDATION}
    splits: dict[str, labelled.LabelledSet] = {}
    notes: dict[str, None] = {}
    for name, part in (parts | tests).items():
        file = evaluation_sets.find(folder, part)
        if file is None:
            line = f"No file below {folder} is named {' or '.join(part.patterns)}."
            if name in parts:
                return line
            notes[f"{name}: {line}"] = None
            continue
        try:
            whole = readers.read(file, task=evaluation.task, mask=part.mask)
        except readers.NoLabelsError as error:
            # E.g. public training labels of NetSurfP-2.0 have three states, not eight.
            if name in parts:
                return str(error)
            notes[f"{name}: {error}"] = None
            continue
        notes |= dict.fromkeys(whole.notes)
        try:
            splits[name] = whole.split(*part.splits) if part.splits else whole
        except ValueError as error:
            return f"{file}: {error}"
        if not evaluation.tests and name == TRAIN:
            used = {*evaluation.train.splits, *evaluation.validation.splits}
            for test in dict.fromkeys(p.split for p in whole.proteins):
                if test not in used:
                    splits[test] = whole.split(test)
    splits = _limited(_separated(splits, notes), limits, notes)
    for name in [name for name, split in splits.items() if not split.proteins]:
        if name in parts:
            causes = [note for note in notes if "left out" in note]
            return " ".join([f"No {name} protein is left.", *causes])
        notes[f"{name}: no protein is left."] = None
        del splits[name]
    if not (set(splits) - set(parts)) and VALIDATION not in evaluation.tests:
        return "There is no test set."
    return Data(splits, tuple(notes))


def _separated(
    splits: Mapping[str, labelled.LabelledSet], notes: dict
) -> dict[str, labelled.LabelledSet]:
    """The splits without training and validation proteins that are in a test set."""
    separated = dict(splits)
    for test in splits:
        if test in (TRAIN, VALIDATION):
            continue
        joined = [
            dataclasses.replace(protein, split=name)
            for name in (TRAIN, VALIDATION, test)
            for protein in separated[name].proteins
        ]
        data = dataclasses.replace(splits[TRAIN], proteins=joined, notes=())
        checked = leaks.check(data, "drop")
        notes |= dict.fromkeys(checked.notes)
        for name in (TRAIN, VALIDATION):
            kept = [protein for protein in checked.proteins if protein.split == name]
            separated[name] = dataclasses.replace(splits[name], proteins=kept)
    return separated


def _limited(
    splits: Mapping[str, labelled.LabelledSet], limits: Limits, notes: dict
) -> dict[str, labelled.LabelledSet]:
    """The splits without proteins that are too long, and no more than asked for."""
    numbers = {name: limits.max_test_proteins for name in splits}
    if limits.max_proteins is not None:
        numbers[TRAIN] = limits.max_proteins * 9 // 10
        numbers[VALIDATION] = limits.max_proteins - limits.max_proteins * 9 // 10
    else:
        numbers[TRAIN] = numbers[VALIDATION] = None
    limited = {}
    for name, split in splits.items():
        longest, number = limits.max_residues, numbers[name]
        proteins = [
            p for p in split.proteins if longest is None or len(p.residues) <= longest
        ]
        if len(proteins) < len(split.proteins):
            left_out = len(split.proteins) - len(proteins)
            notes[
                f"{name}: {left_out:,} proteins over {longest:,} residues left out."
            ] = None
        if number is not None and number < len(proteins):
            notes[f"{name}: {number:,} of {len(proteins):,} proteins drawn."] = None
            drawn = np.random.default_rng(limits.seed).permutation(len(proteins))
            proteins = [proteins[i] for i in sorted(drawn[:number])]
        limited[name] = dataclasses.replace(split, proteins=proteins)
    return limited
