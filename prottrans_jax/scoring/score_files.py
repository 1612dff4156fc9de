"""Output files of scores: tables (CSV, TSV, JSON lines) and arrays (npz, HDF5).

A file appears at once, when it is complete.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from prottrans_jax.embed import inputs, keys, writers
from prottrans_jax.files import folders, paths, writing

TABLES = (".csv", ".tsv", ".jsonl")
ARRAYS = (".npz", ".h5", ".hdf5")


def check(
    output: str | os.PathLike, suffixes: Sequence[str], *, overwrite: bool
) -> paths.Place:
    """The path of an output.

    Raises:
      ValueError: The extension is not one of `suffixes`.
      FileExistsError: The file exists, and `overwrite` is False.
    """
    place = paths.place(output, "--output")
    if place.suffix.lower() not in suffixes:
        raise ValueError(
            f"output {place}: the extension selects the format. Choose one of "
            f"{', '.join(suffixes)}."
        )
    if folders.exists(place) and not overwrite:
        raise FileExistsError(f"{place} exists. Pass --overwrite to replace it.")
    return place


@contextlib.contextmanager
def table(
    output: paths.Place, columns: Sequence[str]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that adds a row, a mapping from columns to values."""
    suffix = output.suffix.lower()
    with writing.new_file(output) as path:
        with open(path, "w", newline="", encoding="utf-8") as file:
            if suffix == ".jsonl":
                yield lambda row: print(_json_line(row), file=file)
            else:
                delimiter = "\t" if suffix == ".tsv" else ","
                writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
                writer.writerow(columns)
                yield lambda row: writer.writerow(
                    [_cell(row.get(column, "")) for column in columns]
                )


@contextlib.contextmanager
def arrays(
    output: paths.Place, metadata: Mapping[str, str]
) -> Iterator[Callable[[inputs.Protein, np.ndarray], None]]:
    """Yields a function that adds the array of a protein, under the protein's key.

    HDF5 has the metadata as attributes of the file.
    """
    with writing.new_file(output) as path:
        writer = writers.create(pathlib.Path(path), metadata)

        def add(protein: inputs.Protein, array: np.ndarray) -> None:
            digest = keys.digest(protein.residues)
            length = len(protein.residues)
            writer.add(
                writers.Entry(
                    *(protein.key, protein.name, protein.description),
                    *(length, digest, array),
                )
            )

        try:
            yield add
        finally:
            writer.close()


def _cell(value: Any) -> str:
    # The shortest text that parses to the same number.
    return str(np.float32(value)) if isinstance(value, float) else str(value)


def _json_line(row: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return None if math.isnan(value) else float(str(np.float32(value)))
        return value

    return json.dumps({name: plain(value) for name, value in row.items()})
