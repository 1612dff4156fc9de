"""Reads FASTA from real sources as a stream, with a defined result for every anomaly.

Read: plain, gz (any number of members), bz2, xz, Zstandard, LZ4 and a zip of one file,
recognised by the first bytes, not by the name; "-" is standard input. Lines end with
LF, CRLF or CR. A byte order mark, blank lines, white space inside sequences and ``;``
comment lines are skipped. The id is the first word after ``>``. Tables with a header
row, such as UniProt's TSV, are read too (`proteins.tables`).

Removed and counted: gaps ``-`` ``.`` (aligned FASTA, a3m) and stops ``*`` at the end of
a sequence. Lower case becomes upper case. All 26 letters are residues.

Refused, as a `Problem` that names file, line and record: no header before the first
sequence; a header without an id, or that is not UTF-8; a record without residues; a
character that is not a residue (digits, NUL, a stop inside the sequence); a file
without records; a compressed file that is truncated or damaged; a record of over 64
MiB. For files of other kinds the message names the kind (`proteins.kinds`).

Why not a library: dnaio, the fastest strict one, gives no line numbers, refuses UTF-8
headers and keeps NULs and inner white space. Also, blocks that end at record borders
let several processes share one compressed file. The speed is the same (benchmarks/).
"""

from collections.abc import Callable, Iterable, Iterator
import csv
import dataclasses
import itertools
import os
import pathlib
import sys
from typing import IO, Any, NamedTuple, Self

import numpy as np

from prottrans_jax.proteins import kinds, tables, unpacking, vocabulary

BLOCK_BYTES = 2 << 20
MAX_RECORD_BYTES = 64 << 20
_PARSE_BYTES = 256 << 10
# Maximum bytes of the first line of a table.
_SNIFF_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_GAPS_AND_STOPS = vocabulary.GAPS + vocabulary.STOP
_TABLE_NEEDS = "A table needs a first row that names its columns, such as id,sequence."


class Record(NamedTuple):
    """A protein: id (UTF-8), upper-case residues, line of its header (from 1)."""

    name: bytes
    residues: bytes
    line: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fault of a record or a file, and its place.

    Attributes:
      path: file.
      line: line, counted from 1, of the offending character if it is known, else of
        the record's header; 0 if no line is at fault.
      name: id of the record; "" if it has none or the whole file is at fault.
      reason: the kind in a few fixed words; summaries count by it.
      detail: the message for the user.
      fatal: whether the file cannot be trusted, so that the problem is never skipped.
    """

    path: str
    line: int
    name: str
    reason: str
    detail: str
    fatal: bool = False

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.detail}"


class FastaError(ValueError):
    """A `Problem` that is not skipped."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self) -> tuple:
        return FastaError, (self.problem,)


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
    problems: tuple[Problem, ...] = ()
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
    problems: list[Problem] = dataclasses.field(default_factory=list)
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


def read(
    paths: Iterable[str | os.PathLike],
    *,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Record]:
    """Records of FASTA files in order, with one block in memory at a time.

    Args:
      paths: files; "-" is standard input.
      on_problem: called with each problem; its record is left out. None: the first
        problem is raised.

    Raises:
      FastaError: the first problem, or a fatal one.
    """
    for path in paths:
        for block in blocks(path):
            parsed = parse(block)
            raise_or_report((*block.problems, *parsed.problems), on_problem)
            yield from map(Record, parsed.names, parsed.residues, parsed.lines)


def raise_or_report(
    problems: Iterable[Problem], on_problem: Callable[[Problem], None] | None
) -> None:
    """Passes each problem to `on_problem`; raises it if that is None or it is fatal."""
    for problem in problems:
        if on_problem is None or problem.fatal:
            raise FastaError(problem)
        on_problem(problem)


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
        end = data.find(b"\n>", start + _PARSE_BYTES)
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
    if b"" in names:
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
        if isinstance(result, Problem):
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
) -> Problem | tuple[Record, int, int]:
    """The record of `text` with its numbers of gaps and stops; or its problem."""
    header, _, body = text.partition(b"\n")
    name = (header.split(None, 1) or [b""])[0]
    shown = name.decode("utf-8", errors="backslashreplace")

    def problem(at: int, reason: str, detail: str) -> Problem:
        return Problem(path, at, shown, reason, detail)

    if not name:
        return problem(line, "header without an id", "header without an id after '>'.")
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


def blocks(
    path: str | os.PathLike,
    *,
    block_bytes: int = BLOCK_BYTES,
    digest: Any = None,
    stream: IO[bytes] | None = None,
) -> Iterator[Block]:
    """Cuts a FASTA file at record borders into blocks of about `block_bytes`.

    Args:
      path: file, "-" for standard input.
      block_bytes: approximate size of a block; it may be larger by one record.
      digest: updated with the stored bytes of the file.
      stream: read instead of the file; `path` then serves only for messages.
    """
    shown = "standard input" if str(path) == "-" else str(path)
    tail = b""
    line = 1  # Line of the first character of `tail`.
    begun = sniffed = False
    first = True
    problems: list[Problem] = []
    chunks = _lines_of(stream or _open(path), digest, block_bytes)
    while True:
        try:
            chunk = next(chunks, b"")
        except EOFError:
            # The last record may be incomplete: it is dropped.
            border = tail.rfind(b"\n>")
            complete = tail[: border + 1] if begun else b""
            at = line + tail.count(b"\n")
            lost = tail[len(complete) :].partition(b"\n")[0][1:].split(None, 1)
            name = lost[0].decode("utf-8", "backslashreplace") if lost else ""
            problems.append(_cut_short(shown, at, name))
            yield Block(shown, line, complete, tuple(problems), first)
            return
        except unpacking.UnreadableError as e:
            raise _other_kind(shown, str(e)) from e
        except _damage() as e:
            raise _damaged(shown, line, e) from e
        last = not chunk
        tail += chunk
        if not sniffed:
            if not (last or _is_enough(tail)):
                continue
            sniffed = True
            if table := _recognise(shown, tail):
                yield from _blocks_of_table(
                    shown, table, itertools.chain([tail], chunks), block_bytes
                )
                return
        if not begun:
            tail, line, begun, before = _first_header(shown, tail, line, last)
            problems += before
            if not begun:
                if last:
                    yield Block(shown, line, b"", tuple(problems), first)
                    return
                continue
        border = len(tail) if last else tail.rfind(b"\n>") + 1
        if border:
            data, tail = tail[:border], tail[border:]
            yield Block(shown, line, data, tuple(problems), first)
            problems, first = [], False
            line += data.count(b"\n")
        elif len(tail) > MAX_RECORD_BYTES:
            name = tail.partition(b"\n")[0][1:80].decode("utf-8", "backslashreplace")
            raise FastaError(
                Problem(
                    shown,
                    line,
                    name,
                    "record too long",
                    f"record {name!r} has over {MAX_RECORD_BYTES >> 20} MiB of text. "
                    "Is this a genome?",
                    fatal=True,
                )
            )
        if last:
            return


def _is_enough(start: bytes) -> bool:
    """Whether the start of the text suffices to recognise the kind of the file."""
    long_enough = len(start) >= kinds.START_BYTES and b"\n" in start
    return long_enough or len(start) >= _SNIFF_BYTES


def _recognise(path: str, start: bytes) -> tables.Table | None:
    """The table with this start; None for FASTA.

    Raises:
      FastaError: It is neither; names the kind of file.
    """
    if start.startswith((b">", b";")):
        return None
    if kind := kinds.describe(start):
        raise _other_kind(path, kind)
    line = start.partition(b"\n")[0]
    table = tables.recognise(line) if len(line) < _SNIFF_BYTES else None
    if table is not None and table.missing:
        raise _other_kind(path, table.missing, line=1)
    return table


def _blocks_of_table(
    path: str, table: tables.Table, chunks: Iterator[bytes], block_bytes: int
) -> Iterator[Block]:
    """Rows of a table as FASTA of two lines each."""
    text, lines, problems = [], [], []
    held, first, line = 0, True, 1
    rows = tables.rows(table, _split_lines(chunks), MAX_RECORD_BYTES)
    while True:
        try:
            row = next(rows, None)
        except EOFError:
            problems.append(_cut_short(path, line + 1, ""))
            row = None
        except csv.Error as e:
            raise _damaged(path, line + 1, e) from e
        except _damage() as e:
            raise _damaged(path, line, e) from e
        if row is not None:
            line = row.line
            if row.fault is not None:
                problems.append(Problem(path, row.line, row.name, *row.fault))
                continue
            header = f"{row.name} {row.description}".rstrip()
            text.append(f">{header}\n{row.sequence}\n".encode())
            lines.append(row.line)
            held += len(text[-1])
        if row is None and first and not (text or problems):
            detail = "the table holds no rows."
            problems.append(Problem(path, 0, "", "file without records", detail))
        if held >= block_bytes or (row is None and (text or problems)):
            data = b"".join(text)
            yield Block(path, 1, data, tuple(problems), first, tuple(lines))
            text, lines, problems = [], [], []
            held, first = 0, False
        if row is None:
            return


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their ends."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _cut_short(path: str, line: int, name: str) -> Problem:
    return Problem(
        path,
        line,
        name,
        "compressed file cut short",
        "the compressed file is cut short here (or has foreign bytes at its end). "
        "Download it again; with --on_bad=skip the records before this place are used.",
    )


def _damage() -> tuple[type[Exception], ...]:
    """Types of errors that reading a damaged file raises."""
    return (*unpacking.errors(), OSError)


def _damaged(path: str, line: int, error: Exception) -> FastaError:
    return FastaError(
        Problem(
            path,
            line,
            "",
            "damaged file",
            f"cannot be read after this line: {error}. Download or copy it again.",
            fatal=True,
        )
    )


def _other_kind(path: str, detail: str, line: int = 0) -> FastaError:
    return FastaError(Problem(path, line, "", "another kind of file", detail, True))


def _first_header(
    path: str, text: bytes, line: int, last: bool
) -> tuple[bytes, int, bool, list[Problem]]:
    """Skips text before the first header.

    Returns:
      The remaining text, its line, whether there is a header, and problems.
    """
    text = text.removeprefix(_BOM)
    at = 0 if text.startswith(b">") else text.find(b"\n>") + 1
    has_header = text.startswith(b">") or at > 0
    if not (has_header or last or len(text) > MAX_RECORD_BYTES):
        return text, line, False, []
    before = text[:at] if has_header else text
    problems = []
    for k, part in enumerate(before.split(b"\n")):
        if part.strip() and not part.startswith(b";"):
            problem = Problem(
                path,
                line + k,
                "",
                "text before the first header",
                "sequence before the first '>' header. Is this FASTA?",
            )
            if not has_header and any(mark in part for mark in b",;\t"):
                detail = f"{problem.detail} {_TABLE_NEEDS}"
                problem = dataclasses.replace(problem, detail=detail)
            if not has_header:
                raise FastaError(dataclasses.replace(problem, fatal=True))
            problems.append(problem)
            break
    if not (has_header or problems):
        problems.append(
            Problem(path, 0, "", "file without records", "the file holds no records.")
        )
    return text[at:], line + before.count(b"\n"), has_header, problems


def check_start(path: str, start: bytes) -> None:
    """Refuses a plain file whose first bytes are text without a header.

    Raises:
      FastaError: They hold more than comments and are not a table.
    """
    if unpacking.is_compressed(start):
        return
    text = start.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if _recognise(path, text) is None:
        _first_header(path, text, 1, last=True)


def _open(path: str | os.PathLike) -> IO[bytes]:
    if str(path) == "-":
        return sys.stdin.buffer
    return pathlib.Path(path).open("rb")


def _lines_of(stream: IO[bytes], digest: Any, size: int) -> Iterator[bytes]:
    """Decompressed text with LF line ends, in pieces of `size` bytes or more."""
    pieces: list[bytes] = []
    held = 0
    after_cr = False
    damage: EOFError | None = None
    texts = unpacking.unpacked(stream, digest)
    while True:
        try:
            text = next(texts)
        except StopIteration:
            break
        except EOFError as e:
            damage = e
            break
        if after_cr and text.startswith(b"\n"):
            text = text[1:]
        if not text:
            continue
        after_cr = text.endswith(b"\r")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        pieces.append(text)
        held += len(text)
        if held >= size:
            yield b"".join(pieces)
            pieces, held = [], 0
    if held:
        yield b"".join(pieces)
    if damage:
        raise damage
