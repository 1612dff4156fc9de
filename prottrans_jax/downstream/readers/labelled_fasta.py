"""FASTA with labels in its headers: biotrainer's (also PBC and FLIP), and DeepLoc's.

  >P12345 TARGET=HHEC SET=train VALIDATION=False MASK=1110      biotrainer
  >Q9H400 Cell.membrane-M test                                  DeepLoc 1.0

biotrainer's per-residue numbers are separated by ";". Formats as read by
`biotrainer_core.input_files` 2.1.1 (attributes of upper-case letters and "_", values
without blanks) and as in the files of JJAlmagro/subcellular_localization and
HannesStark/protein-localization.
"""

from collections.abc import Iterator, Sequence
import re
from typing import NamedTuple

from prottrans_jax.downstream.readers import records

_ATTRIBUTE = re.compile(r"(?:^|\s)([A-Z_]+)=(\S+)")
# Location, membrane class and "test"; a location may itself have a "-":
# Cytoplasm-Nucleus-U.
_DEEPLOC = re.compile(r"(?P<location>\S+)-(?P<membrane>[MSU])(?:\s+(?P<set>test))?$")


class Entry(NamedTuple):
    """A header without ">", the text below it without white space, and its line."""

    header: str
    body: str
    line: int


def entries(name: str, lines: Sequence[str]) -> Iterator[Entry]:
    """Entries of a FASTA file whose bodies may be labels instead of residues.

    Raises:
      ValueError: Text before the first header, or a header without an id.
    """
    header: str | None = None
    body: list[str] = []
    at = 0
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            if header is not None:
                yield Entry(header, "".join("".join(body).split()), at)
            header, body, at = line[1:].strip(), [], number
            if not header:
                raise ValueError(f"{name}:{number}: a header without an id after '>'.")
        elif header is not None:
            body.append(line)
        elif line.strip() and not line.startswith(";"):
            raise ValueError(f"{name}:{number}: text before the first '>' header.")
    if header is not None:
        yield Entry(header, "".join("".join(body).split()), at)


def attributes(description: str) -> dict[str, object]:
    """KEY=VALUE pairs of a header, with keys in lower case."""
    return {key.lower(): value for key, value in _ATTRIBUTE.findall(description)}


def is_deeploc(header: str) -> bool:
    """Whether a header is of DeepLoc's form."""
    parts = header.split(None, 1)
    return len(parts) == 2 and _DEEPLOC.match(parts[1].strip()) is not None


def read(name: str, stem: str, lines: Sequence[str]) -> records.Contents:
    """Parses the lines of a file; arguments as those of `json_lines.read`.

    Raises:
      ValueError: A header has no labels.
    """
    del stem  # Every header has an id.
    found: list[records.Record] = []
    columns: dict[str, None] = {}
    deeploc: bool | None = None
    for header, body, line in entries(name, lines):
        identifier, _, description = header.partition(" ")
        if deeploc is None:
            deeploc = is_deeploc(header)
        place = f"{name}:{line}"
        if deeploc:
            match = _DEEPLOC.match(description.strip())
            if match is None:
                raise ValueError(
                    f"{place}: record {identifier!r}: {description!r} is not of the "
                    "form LOCATION-M, LOCATION-S or LOCATION-U, with or without "
                    "' test', as in the headers before."
                )
            # DeepLoc marks test proteins only.
            fields: dict[str, object] = {
                "location": match["location"],
                "membrane": match["membrane"],
                "split": match["set"] or "train",
            }
        else:
            fields = attributes(description)
            if not fields:
                raise ValueError(
                    f"{place}: record {identifier!r}: the header has no labels. "
                    "Expected `>ID TARGET=... SET=...` (biotrainer) or "
                    "`>ID Location-M test` (DeepLoc). Labels in a second FASTA file: "
                    "put both in one folder, sequences.fasta beside them (FLIP), and "
                    "give the folder."
                )
        columns.update(dict.fromkeys(fields))
        found.append(records.Record(identifier, body, fields, place))
    form = "deeploc" if deeploc else "biotrainer"
    return records.Contents(form, tuple(found), tuple(columns))
