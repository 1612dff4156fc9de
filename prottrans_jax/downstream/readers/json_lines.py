"""JSON Lines: an object for each protein.

  {"id": "1es5-A", "sequence": "VTKP", "q3": "CCEE", "mask": "0111", "split": "train"}

A label of residues is a string as long as the sequence, or a list with a value for each
residue, null where there is none.
"""

from collections.abc import Sequence

from prottrans_jax.downstream.readers import records
from prottrans_jax.files import json_text
from prottrans_jax.proteins import tables


def read(name: str, stem: str, lines: Sequence[str]) -> records.Contents:
    """Parses the lines of a file.

    Args:
      name: Of the file, for messages.
      stem: Start of the ids of records without one.
      lines: The file.

    Raises:
      ValueError: A line is not a JSON object, or has no sequence.
    """
    found: list[records.Record] = []
    columns: dict[str, None] = {}
    num_without_id = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            value = json_text.parse(line)
        except ValueError as error:
            raise ValueError(f"{place}: not JSON: {error}.") from None
        if not isinstance(value, dict):
            raise ValueError(f"{place}: not a JSON object but {type(value).__name__}.")
        fields = {tables.column_name(key): field for key, field in value.items()}
        sequence = records.first(records.SEQUENCES, fields)
        if sequence is None or not isinstance(fields[sequence], str):
            raise ValueError(
                f'{place}: the object has no text "sequence"; its keys: '
                f"{', '.join(value)}."
            )
        key = records.first(records.IDS, fields)
        num_without_id += key is None
        identifier = records.made_id(stem, len(found)) if key is None else fields[key]
        rest = {k: v for k, v in fields.items() if k not in (key, sequence)}
        columns.update(dict.fromkeys(rest))
        found.append(
            records.Record(str(identifier), str(fields[sequence]), rest, place)
        )
    notes = records.note_of_made_ids(num_without_id, stem)
    return records.Contents("jsonl", tuple(found), tuple(columns), notes)
