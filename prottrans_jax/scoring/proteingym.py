"""Variants in ProteinGym's CSV (Notin et al. 2023): a row for each, one file an assay.

The column `mutant` is required: A1C, or A1C:D2E. A `mutated_sequence` is
compared with it. `DMS_score` is the measurement. All columns are kept.
"""

from collections.abc import Sequence
import csv
import math
import os
from typing import NamedTuple

import numpy as np

from prottrans_jax.files import paths
from prottrans_jax.proteins import plurals
from prottrans_jax.scoring import mutations

MUTANT, SEQUENCE, MEASURED, SCORE = (
    *("mutant", "mutated_sequence", "DMS_score"),
    "score",
)
# Cells may hold proteins.
_MAX_CELL = 1 << 24


class Assay(NamedTuple):
    """The variants of one file.

    Attributes:
      name: Name of the file without its extension.
      path: The file.
      columns: Names of the columns.
      rows: Cells of each row by column.
      lines: Line of each row, from 1.
    """

    name: str
    path: str
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]

    def mutants(self, residues: bytes) -> list[tuple[mutations.Mutation, ...]]:
        """Mutations of each row, checked against the wild type.

        Raises:
          ValueError: A row does not fit the wild type; names line and mutation.
        """
        parsed = []
        for line, row in zip(self.lines, self.rows, strict=True):
            where = f"{self.path}:{line}"
            several = mutations.parse(row[MUTANT], residues, where)
            sequence = (row.get(SEQUENCE) or "").strip().upper()
            variant = mutations.apply(several, residues).decode()
            if sequence and sequence != variant:
                raise ValueError(
                    f"{where}: {row[MUTANT]} does not give {SEQUENCE}: "
                    f"{_difference(sequence, variant)}."
                )
            parsed.append(several)
        return parsed

    def measured(self) -> np.ndarray | None:
        """`DMS_score` of each row, NaN if empty; None without that column.

        Raises:
          ValueError: A cell is not a number; names its line.
        """
        if MEASURED not in self.columns:
            return None
        values = []
        for line, row in zip(self.lines, self.rows, strict=True):
            text = row[MEASURED].strip()
            try:
                values.append(float(text) if text else math.nan)
            except ValueError:
                raise ValueError(
                    f"{self.path}:{line}: {MEASURED} is {text!r}, not a number."
                ) from None
        return np.array(values)


def read(source: str | os.PathLike) -> Assay:
    """Reads a CSV, or a TSV if the name ends in .tsv.

    Raises:
      ValueError: There is no column `mutant` or no row, or a row has other cells than
        the header; names the line.
    """
    path = paths.local(source, "--variants")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(_MAX_CELL)
    rows, lines = [], []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        columns = tuple(reader.fieldnames or ())
        if not columns:
            raise ValueError(f"{path}: the file is empty.")
        if MUTANT not in columns:
            raise ValueError(
                f"{path}:1: there is no column {MUTANT!r}; the columns are "
                f"{', '.join(columns)}."
            )
        if SCORE in columns:
            raise ValueError(
                f"{path}:1: there is a column {SCORE!r} already; the scores would "
                "replace it. Rename it."
            )
        try:
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}:{line}: this row does not have "
                        f"{plurals.count(len(columns), 'cell')} as the header."
                    )
                rows.append(row)
                lines.append(line)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}.") from None
    if not rows:
        raise ValueError(f"{path}: there is no variant.")
    return Assay(path.stem, str(path), columns, rows, lines)


def read_all(sources: Sequence[str | os.PathLike]) -> list[Assay]:
    """Reads several files, whose names must differ; see `read`."""
    assays = [read(source) for source in sources]
    names = [assay.name for assay in assays]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--variants: two files are named {name!r}. Rename one.")
    return assays


def spearman(scores: np.ndarray, measured: np.ndarray) -> tuple[float, int]:
    """Spearman's rank correlation, and the number of variants with a measurement.

    NaN with fewer than two of them, or if either side is constant.
    """
    from scipy import stats

    known = np.isfinite(measured)
    count = int(known.sum())
    if count < 2 or min(np.ptp(scores[known]), np.ptp(measured[known])) == 0:
        return math.nan, count
    return float(stats.spearmanr(scores[known], measured[known]).statistic), count


def _difference(sequence: str, variant: str) -> str:
    if len(sequence) != len(variant):
        return f"{len(sequence)} residues instead of {len(variant)}"
    pairs = zip(sequence, variant, strict=True)
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    return f"position {at + 1} is {sequence[at]} instead of {variant[at]}"
