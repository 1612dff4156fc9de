"""Blocks of FASTA text, and their parsing into records and problems.

Removed and counted: gaps ``-`` ``.`` (aligned FASTA, a3m) and stops ``*`` at the end of
a sequence. Blank lines, white space inside sequences and ``;`` comment lines are
skipped. Lower case becomes upper case. All 26 letters are residues. The id is the first
word after ``>``.

Refused, as a problem (`proteins.fasta_problems`): a header without an id, or that is
not UTF-8; an id that is longer than `MAX_ID_BYTES` or has control characters; a record
without residues; a character that is not a residue (digits, NUL, a stop inside the
sequence).
"""

from collections.abc import Iterable
import dataclasses
import itertools
from typing import NamedTuple, Self

import numpy as np

from prottrans_jax import printable
from prottrans_jax.proteins import fasta_problems, vocabulary

PARSE_BYTES = 256 << 10
# An id becomes the name of an HDF5 dataset or a zip member, which have limits. Longer
# ones are sequences or texts that follow a misplaced ">".
MAX_ID_BYTES = 4096
_SHOWN_BYTES = 80
_GAPS_AND_STOPS = vocabulary.GAPS + vocabulary.STOP


class Record(NamedTuple):
    """A protein: id (UTF-8), upper-case residues, line of its header (from 1)."""

    name: bytes
    residues: bytes
    line: int


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole records of one file: text that starts with ">" at line `line`.

    Attributes:
      path: The file.
      line: Of the first character.
      data: The text; "" if there are only problems.
      problems: Problems before this block.
      first: Whether this is the first block of the file.
      rows: For a table, the line of each record; `data` then has two lines per record.
    """

    path: str
    line: int
    data: bytes
    problems: tuple[fasta_problems.Problem, ...] = ()
    first: bool = False
    rows: tuple[int, ...] = ()


@dataclasses.dataclass
class Parsed:
    """Records of a block by column, problems, and numbers of removed characters.

    `headers` stays empty unless `parse` was called with `headers=True`.
    """

    names: list[bytes] = dataclasses.field(default_factory=list)
    residues: list[bytes] = dataclasses.field(default_factory=list)
    lines: list[int] = dataclasses.field(default_factory=list)
    headers: list[bytes] = dataclasses.field(default_factory=list)
    problems: list[fasta_problems.Problem] = dataclasses.field(default_factory=list)
    num_gaps: int = 0
    num_stops: int = 0

    def only(self, chosen: Iterable[bool]) -> Self:
        """The chosen records."""
        return dataclasses.replace(
            self,
            names=list(itertools.compress(self.names, chosen)),
            residues=list(itertools.compress(self.residues, chosen)),
            lines=list(itertools.compress(self.lines, chosen)),
            headers=list(itertools.compress(self.headers, chosen)),
        )


def parse(block: Block, *, headers: bool = False) -> Parsed:
    """Splits a block into clean records, on request with their whole `headers`."""
    data = block.data
    out = Parsed()
    if not data:
        return out
    line = block.line
    start = 0
    while start < len(data):
        # Pieces of 256 KiB fit into the cache of a core.
        end = data.find(b"\n>", start + PARSE_BYTES)
        if end < 0:
            end = len(data)
        piece = data[start:end]
        newlines = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n"))
        if not _parse_quickly(piece, newlines, line, out, headers):
            _parse_closely(block.path, piece, line, out, headers)
        line += newlines.size + 1
        start = end + 1
    if block.rows:
        out.lines = [block.rows[line // 2] for line in out.lines]
        out.problems = [
            dataclasses.replace(problem, line=block.rows[(problem.line - 1) // 2])
            for problem in out.problems
        ]
    return out


def _parse_quickly(
    piece: bytes, newlines: np.ndarray, line: int, out: Parsed, headers: bool
) -> bool:
    """Adds the records of a piece without anomalies; else adds none, returns False.

    Most steps are vectorised over the records, with few Python operations for each.
    """
    text = np.frombuffer(piece, np.uint8)
    after = text[newlines[newlines < text.size - 1] + 1]
    # Control characters, such as NUL and tab, and non-ASCII characters.
    if np.count_nonzero(text < ord(" ")) > newlines.size or (text >= 127).any():
        return False
    # [records]: newlines before each header, its first byte, its end, the record's end.
    before = np.append(0, np.flatnonzero(after == ord(">")) + 1)
    starts = np.append(0, newlines[before[1:] - 1] + 1)
    header_ends = np.append(newlines, text.size)[before]
    ends = np.append(starts[1:], text.size)
    lengths = ends - header_ends - np.diff(before, append=newlines.size)
    spans = zip(header_ends.tolist(), ends.tolist(), strict=True)
    joined = b"".join([piece[a:b] for a, b in spans]).replace(b"\n", b"")
    letters = np.frombuffer(joined, np.uint8)
    if (letters >= ord("a")).any():
        joined = joined.upper()
        letters = np.frombuffer(joined, np.uint8)
    # All 26 letters are residues (`vocabulary.LETTERS`).
    if ((letters < ord("A")) | (letters > ord("Z"))).any() or lengths.min() < 1:
        return False
    spans = zip(starts.tolist(), header_ends.tolist(), strict=True)
    names = [piece[a + 1 : b].partition(b" ")[0] for a, b in spans]
    if b"" in names or max(map(len, names)) > MAX_ID_BYTES:
        return False
    cuts = np.append(0, np.cumsum(lengths)).tolist()
    out.names += names
    out.residues += [joined[a:b] for a, b in itertools.pairwise(cuts)]
    out.lines += (before + line).tolist()
    if headers:
        spans = zip(starts.tolist(), header_ends.tolist(), strict=True)
        out.headers += [piece[a + 1 : b] for a, b in spans]
    return True


def _parse_closely(
    path: str, piece: bytes, line: int, out: Parsed, headers: bool
) -> None:
    """Adds the records of a piece, or their problems, one by one."""
    for text in piece[1:].split(b"\n>"):
        result = _parse_record(path, line, text)
        if isinstance(result, fasta_problems.Problem):
            out.problems.append(result)
        else:
            record, num_gaps, num_stops = result
            out.names.append(record.name)
            out.residues.append(record.residues)
            out.lines.append(line)
            if headers:
                out.headers.append(text.partition(b"\n")[0])
            out.num_gaps += num_gaps
            out.num_stops += num_stops
        line += text.count(b"\n") + 1


def _parse_record(
    path: str, line: int, text: bytes
) -> fasta_problems.Problem | tuple[Record, int, int]:
    """The record of `text` with its numbers of gaps and stops; or its problem."""
    header, _, body = text.partition(b"\n")
    name = (header.split(None, 1) or [b""])[0]
    shown = name[:_SHOWN_BYTES].decode("utf-8", errors="backslashreplace")
    shown += "..." * (len(name) > _SHOWN_BYTES)

    def problem(at: int, reason: str, detail: str) -> fasta_problems.Problem:
        # The name is listed in files and on the terminal.
        return fasta_problems.Problem(path, at, printable.plain(shown), reason, detail)

    if not name:
        return problem(line, "header without an id", "header without an id after '>'.")
    if len(name) > MAX_ID_BYTES:
        return problem(
            line,
            "id too long",
            f"the id {shown!r} has {len(name):,} bytes; the limit is {MAX_ID_BYTES:,}. "
            "Put a blank after the id.",
        )
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return problem(
            line,
            "header is not UTF-8",
            f"the header of {shown!r} is not UTF-8. Convert the file, e.g. with "
            "`iconv -f latin1 -t utf8`.",
        )
    if b"\0" in header or not name.decode().isprintable():
        return problem(
            line,
            "control character in a header",
            f"the header of {shown!r} holds a NUL or another control character.",
        )
    lines = [b"" if part.startswith(b";") else part for part in body.split(b"\n")]
    residues, num_gaps, num_stops = vocabulary.clean(b"".join(lines))
    if not residues:
        return problem(
            line, "no residues", f"record {shown!r} has a header but no residues."
        )
    if not residues.isalpha():
        at, column, char = _first_odd(lines)
        reason = (
            "a stop inside a sequence"
            if char in vocabulary.STOP
            else "a character that is no residue"
        )
        return problem(
            line + 1 + at,
            reason,
            f"{char.decode('latin-1')!r} at column {column} of record {shown!r} is "
            f"{reason}.",
        )
    return Record(name, residues, line), num_gaps, num_stops


def _first_odd(lines: list[bytes]) -> tuple[int, int, bytes]:
    """Line (from 0), column (from 1) and byte of the first invalid character."""
    # Gaps and stops after this character are at the end of the sequence.
    last = max(
        (at, column)
        for at, part in enumerate(lines)
        for column, byte in enumerate(part)
        if byte not in _GAPS_AND_STOPS + vocabulary.WHITE_SPACE
    )
    for at, part in enumerate(lines):
        for column, byte in enumerate(part):
            char = bytes([byte])
            allowed = char.isalpha() or char.isspace() or char in vocabulary.GAPS
            if not allowed and (char != vocabulary.STOP or (at, column) < last):
                return at, column + 1, char
    raise AssertionError(lines)
