"""Tables (CSV, TSV) with a first row that names the columns.

Besides a user's own tables these are those of ProtTrans (NetSurfP-2.0: input, dssp3,
dssp8, disorder, cb513_mask; DeepLoc: input, loc, membrane) and of FLIP (sequence,
target, set, validation).
"""

from collections.abc import Sequence
import csv

from prottrans_jax.downstream.readers import records
from prottrans_jax.proteins import tables

_DELIMITERS = "\t,;"


def header(line: str) -> tuple[str, list[str]]:
    """The delimiter of a table, and the names of its columns; "" if it is none."""
    best: tuple[str, list[str]] = ("", [])
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([line], delimiter=delimiter), [])
        names = [tables.column_name(cell) for cell in cells]
        if len(names) > len(best[1]) and any(n in records.SEQUENCES for n in names):
            best = delimiter, names
    return best


def read(name: str, stem: str, lines: Sequence[str]) -> records.Contents:
    """Parses the lines of a table; arguments as those of `json_lines.read`.

    Raises:
      ValueError: There is no column of sequences, a row has another number of cells, or
        a column stands twice.
    """
    delimiter, names = header(lines[0])
    if not names:
        raise ValueError(
            f"{name}:1: no column of sequences. The first row must name the columns: "
            f"one of {', '.join(records.SEQUENCES)}."
        )
    for column in names:
        if names.count(column) > 1:
            raise ValueError(f"{name}:1: two columns are named {column!r}. Rename one.")
    sequence = str(records.first(records.SEQUENCES, dict.fromkeys(names)))
    key = records.first(records.IDS, dict.fromkeys(names))
    csv.field_size_limit(max(csv.field_size_limit(), max(map(len, lines)) + 1))
    # Tab-separated tables have no quoting.
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
    )
    found: list[records.Record] = []
    line = 1
    for cells in reader:
        at, line = line, reader.line_num + 1
        if at == 1 or not any(map(str.strip, cells)):
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"{name}:{at}: {len(cells)} cells in a table of {len(names)} columns "
                f"({', '.join(names)})."
            )
        fields = dict(zip(names, map(str.strip, cells), strict=True))
        identifier = records.made_id(stem, len(found)) if key is None else fields[key]
        rest = {k: v for k, v in fields.items() if k not in (key, sequence)}
        place = f"{name}:{at}"
        if not identifier:
            raise ValueError(f"{place}: the row has no id.")
        found.append(records.Record(identifier, fields[sequence], rest, place))
    columns = tuple(n for n in names if n not in (key, sequence))
    notes = records.note_of_made_ids(len(found) if key is None else 0, stem)
    return records.Contents(_format(names), tuple(found), columns, notes)


def _format(names: Sequence[str]) -> str:
    if {"input", "dssp3"} <= set(names):
        return "netsurfp"
    if {"sequence", "target", "set", "validation"} <= set(names):
        return "flip"
    return "table"
