"""What every reader gives: records with named columns, not yet labels of a task."""

from collections.abc import Mapping, Sequence
import dataclasses

from prottrans_jax.proteins import plurals, tables

# Names of columns, as `tables.column_name` gives them, by precedence.
IDS = tables.ID_COLUMNS
# "input" is the column of ProtTrans' CSV files.
SEQUENCES = (*tables.SEQUENCE_COLUMNS, "input")
LABELS = ("label", "labels", "target", "targets", "class", "fitness", "score", "y")
SPLITS = ("split", "set", "partition")
MASKS = ("mask", "resolved")


@dataclasses.dataclass(frozen=True)
class Record:
    """A protein of a file.

    Attributes:
      id: Its id; made from the name of the file and its number if the file has none.
      sequence: Residues as in the file, not checked.
      columns: Everything else by the name of its column: text, or what JSON holds.
      place: "FILE:LINE".
    """

    id: str
    sequence: str
    columns: Mapping[str, object]
    place: str

    def problem(self, detail: str) -> str:
        """A message about this record, with its place and id."""
        return f"{self.place}: record {self.id!r}: {detail}"


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file of labelled proteins, before a task is chosen.

    Attributes:
      format: Its format, a key of `label_files.FORMATS`.
      records: In the order of the file.
      columns: Names of the columns that some record has, in their order.
      notes: What the reader decided, a line each.
    """

    format: str
    records: tuple[Record, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


def merged(parts: Sequence[Contents]) -> Contents:
    """Several files as one."""
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    return Contents(
        parts[0].format,
        tuple(record for part in parts for record in part.records),
        tuple(columns),
        tuple(note for part in parts for note in part.notes),
    )


def first(names: tuple[str, ...], columns: Mapping[str, object]) -> str | None:
    """The first of these names that is a column."""
    return next((name for name in names if name in columns), None)


def split_of(columns: Mapping[str, object]) -> str:
    """Name of the split, or "" if no column gives one.

    FLIP marks validation proteins as SET=train VALIDATION=True; they are "val".
    """
    name = first(SPLITS, columns)
    split = "" if name is None else str(columns[name]).strip()
    if str(columns.get("validation", "")).strip().lower() in ("true", "1"):
        return "val"
    return split


def made_id(stem: str, index: int) -> str:
    """Id of a record of a file without ids; `index` is from 0."""
    return f"{stem}-{index}"


def note_of_made_ids(number: int, stem: str) -> tuple[str, ...]:
    """Notes about records without an id."""
    if not number:
        return ()
    named = plurals.count(number, "record has", "records have")
    return (f"{named} no id: named {made_id(stem, 0)}, {made_id(stem, 1)}, ...",)
