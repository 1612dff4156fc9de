"""Tables of sequences: UniProt's TSV, a CSV of id and sequence.

A table is recognised by its first row, which names the columns. Every row becomes a
FASTA record; the id is the whole cell, with "_" for white space.
"""

from collections.abc import Iterable, Iterator
import csv
import dataclasses
from typing import NamedTuple

from prottrans_jax.proteins import plurals

# Names of columns, as `column_name` gives them, by precedence.
ID_COLUMNS = (
    *("entry", "accession", "id", "identifier", "protein id", "sequence id", "seq id"),
    *("uniprot id", "uniprot", "primary accession", "name", "protein", "header"),
)
SEQUENCE_COLUMNS = (
    *("sequence", "seq", "protein sequence", "amino acid sequence", "aa sequence"),
    "residues",
)
_DESCRIPTIONS = ("protein names", "description")
_DELIMITERS = "\t,;"
_BOM = b"\xef\xbb\xbf"


class RowTooLongError(ValueError):
    """A row has more text than a record may have; the message gives the limit."""


class Row(NamedTuple):
    """A protein of a table, or the fault of its row.

    Attributes:
      line: First line of the row, from 1.
      name: The id; "" if there is none.
      description: Other text about the protein.
      sequence: Letters, not checked.
      fault: (reason, sentence) if the row cannot be used.
    """

    line: int
    name: str
    description: str
    sequence: str
    fault: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a table.

    Attributes:
      delimiter: Between cells.
      name: Number of the column of ids.
      sequence: Number of the column of sequences.
      description: Number of the column of descriptions; None: there is none.
      missing: Message about a column that is missing or occurs twice; "" if there is
        no such column.
    """

    delimiter: str
    name: int
    sequence: int
    description: int | None
    missing: str = ""


def recognise(first_line: bytes) -> Table | None:
    """The table with this first line; None if it names no known column."""
    try:
        text = first_line.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError:
        return None
    best: Table | None = None
    for delimiter in _DELIMITERS:
        row = next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter), [])
        if len(row) < 2:
            continue
        names = [column_name(cell) for cell in row]
        name, sequence = _first(ID_COLUMNS, names), _first(SEQUENCE_COLUMNS, names)
        if name is None and sequence is None:
            continue
        table = Table(
            delimiter,
            -1 if name is None else name,
            -1 if sequence is None else sequence,
            _first(_DESCRIPTIONS, names),
            _missing(name, sequence, row) or _twice((name, sequence), names),
        )
        if not table.missing:
            return table
        best = best or table
    return best


def column_name(cell: str) -> str:
    """Name of a column as compared: lower case, with single blanks for "_" and "-"."""
    return " ".join(cell.lower().replace("_", " ").replace("-", " ").split())


def _first(candidates: tuple[str, ...], names: list[str]) -> int | None:
    return next((names.index(name) for name in candidates if name in names), None)


def _missing(name: int | None, sequence: int | None, row: list[str]) -> str:
    columns = ", ".join(row[:8]) + (", ..." if len(row) > 8 else "")
    if sequence is None:
        return (
            f"a table without a column of sequences (Sequence); it has {columns}. At "
            "UniProt, add it under `Customize columns`."
        )
    if name is None:
        return f"a table without a column of ids (Entry or id); it has {columns}."
    return ""


def _twice(columns: tuple[int | None, ...], names: list[str]) -> str:
    for column in columns:
        if column is not None and names.count(names[column]) > 1:
            return (
                f"{names.count(names[column])} columns of the table are named "
                f"{names[column]!r}. Rename all but one."
            )
    return ""


def rows(table: Table, lines: Iterable[bytes], longest: int) -> Iterator[Row]:
    """Rows of a table after its first line.

    Args:
      table: Its columns.
      lines: All lines with their ends, including the first.
      longest: Maximum number of bytes of a row.

    Raises:
      RowTooLongError: A row is longer, usually because a quote is not closed.
      csv.Error: A row cannot be parsed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), longest))
    held = 0

    def text() -> Iterator[str]:
        nonlocal held
        for line in lines:
            held += len(line)
            if held > longest:
                raise too_long(longest)
            # Bytes that are not UTF-8 become surrogates, so that `_row` can name the
            # row.
            yield line.decode("utf-8", "surrogateescape")

    # UniProt's TSV has no quoting, and a name may begin with a quote.
    quotes = table.delimiter != "\t"
    reader = csv.reader(
        text(),
        delimiter=table.delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
    )
    next(reader, None)
    line = reader.line_num + 1
    for cells in reader:
        held = 0
        at, line = line, reader.line_num + 1
        if any(cell.strip() for cell in cells):
            yield _row(table, at, cells)


def too_long(longest: int) -> RowTooLongError:
    """The error for a row of more than `longest` bytes."""
    return RowTooLongError(
        f'the row has over {longest >> 20} MiB of text. Is a quote (") not closed, or '
        "is this no table?"
    )


def _row(table: Table, line: int, cells: list[str]) -> Row:
    if len(cells) <= max(table.name, table.sequence):
        num_cells = plurals.count(len(cells), "cell")
        needed = max(table.name, table.sequence) + 1
        detail = f"the row has {num_cells}; id and sequence are in the first {needed}."
        return Row(line, "", "", "", ("row with too few cells", detail))
    name = "_".join(_unquoted(cells[table.name]).split())
    sequence = "".join(_unquoted(cells[table.sequence]).split())
    description = ""
    if table.description is not None and table.description < len(cells):
        description = " ".join(_unquoted(cells[table.description]).split())
    fault: tuple[str, str] | None = None
    try:
        (name + description + sequence).encode("utf-8")
    except UnicodeEncodeError:
        name = name.encode("utf-8", "backslashreplace").decode()
        fault = (
            "row is not UTF-8",
            "the row is not UTF-8. Convert the file, e.g. with "
            "`iconv -f latin1 -t utf8`.",
        )
    if not name:
        fault = "row without an id", "the row has no id."
    elif sequence[:1] in (">", ";"):
        fault = (
            "a character that is no residue",
            f"{sequence[0]!r} at column 1 of record {name!r} is a character that is no "
            "residue.",
        )
    return Row(line, name, description, sequence, fault)


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1]
    return cell
