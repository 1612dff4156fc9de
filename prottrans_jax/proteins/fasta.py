"""FASTA as it is met in the wild, read as a stream; every oddity has a stated outcome.

Read: plain, gz (any number of members), bz2, xz, Zstandard, LZ4 and a zip of one file,
known by their first bytes, not by the file's name; "-" is standard input. Lines end
with LF, CRLF or CR. A byte order mark, blank lines, white space inside sequences and
``;`` comment lines are passed over. The id is the first word behind ``>``. Tables with
a header row, such as UniProt's TSV, are read as `proteins.tables` says.

Cleaned, and counted: gaps ``-`` ``.`` (aligned FASTA, a3m) and stops ``*`` at the end
of a sequence are taken out. Lower case becomes upper case. All 26 letters are residues.

Refused, as a `Problem` that names file, line and record: no header before the first
sequence; a header without an id, or that is not UTF-8; a record without residues; a
character that is no residue (digits, NUL, a stop inside the sequence); a file without
records; a compressed file that is cut short or damaged; a record of over 64 MiB. A file
of another kind is named for what it is (`proteins.kinds`).

Why not a library: dnaio, the fastest strict one, gives no lines, refuses UTF-8 headers
and keeps NULs and inner white space; and blocks that end at record borders let
several processes share one compressed file. Its speed is kept (benchmarks/).
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
# Text in which the first line must end.
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
    """What is wrong with a record or a file, and where.

    Attributes:
      path: file.
      line: line, counted from 1, of the offending character if it is known, else of
        the record's header; 0 where no line is to blame.
      name: id of the record, "" if it has none or the whole file is meant.
      reason: the kind, a few fixed words: what summaries count by.
      detail: the sentence for the user.
      fatal: nothing that was read from the file can be believed: not to be skipped.
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
    """A `Problem` that was not to be skipped."""

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
      problems: What was met before it.
      first: Whether the file begins with it.
      rows: Of a table the line of each record; `data` then has two lines to each.
    """

    path: str
    line: int
    data: bytes
    problems: tuple[Problem, ...] = ()
    first: bool = False
    rows: tuple[int, ...] = ()


@dataclasses.dataclass
class Parsed:
    """Records of a block by column, what was wrong, and how many characters went.

    `headers` stays empty unless whole headers were asked for.
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
    """Records of FASTA files in order, holding one block in memory at a time.

    Args:
      paths: files; "-" is standard input.
      on_problem: called with each problem, whose record is then left out. Without it
        the first problem is raised.

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
    """Hands each problem to `on_problem`; raises it if that is None or it is fatal."""
    for problem in problems:
        if on_problem is None or problem.fatal:
            raise FastaError(problem)
        on_problem(problem)


def parse(block: Block, *, headers: bool = False) -> Parsed:
    """Splits a block into clean records; with whole `headers` if asked for."""
    data = block.data
    out = Parsed()
    if not data:
        return out
    line = block.line
    start = 0
    while start < len(data):
        # A quarter of a megabyte at a time stays in the cache of a core.
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
    """Adds the records of a piece without oddities; False (and none) if it has any.

    Few steps a record are taken in Python: the rest is done for all records at once.
    """
    text = np.frombuffer(piece, np.uint8)
    after = text[newlines[newlines < text.size - 1] + 1]
    # NUL, tab and their like; what is not ASCII.
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
    """Adds the records of a piece, or what is wrong with them, one by one."""
    for text in piece[1:].split(b"\n>"):
        found = _look_closely(path, line, text)
        if isinstance(found, Problem):
            out.problems.append(found)
        else:
            record, num_gaps, num_stops = found
            out.names.append(record.name)
            out.residues.append(record.residues)
            out.lines.append(line)
            if headers:
                out.headers.append(text.partition(b"\n")[0])
            out.num_gaps += num_gaps
            out.num_stops += num_stops
        line += text.count(b"\n") + 1


def _look_closely(
    path: str, line: int, text: bytes
) -> Problem | tuple[Record, int, int]:
    """The record of `text`, its numbers of gaps and stops; or what is wrong with it."""
    header, _, body = text.partition(b"\n")
    name = (header.split(None, 1) or [b""])[0]
    shown = name.decode("utf-8", errors="backslashreplace")

    def problem(at: int, reason: str, detail: str) -> Problem:
        return Problem(path, at, shown, reason, detail)

    if not name:
        return problem(line, "header without an id", "header without an id behind '>'.")
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
        what = (
            "a stop inside a sequence"
            if char in vocabulary.STOP
            else "a character that is no residue"
        )
        return problem(
            line + 1 + at,
            what,
            f"{char.decode('latin-1')!r} at column {column} of record {shown!r} is "
            f"{what}.",
        )
    return Record(name, residues, line), num_gaps, num_stops


def _first_odd(lines: list[bytes]) -> tuple[int, int, bytes]:
    """Line (from 0) and column (from 1) of the first character to be refused."""
    # Gaps and stops behind this character are the end of the sequence.
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
      block_bytes: text of a block; one record more at most.
      digest: updated with the bytes of the file as they are stored.
      stream: read instead of the file, which is only named.
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
            # The last record may have been cut anywhere: it goes with the rest.
            border = tail.rfind(b"\n>")
            kept = tail[: border + 1] if begun else b""
            at = line + tail.count(b"\n")
            lost = tail[len(kept) :].partition(b"\n")[0][1:].split(None, 1)
            name = lost[0].decode("utf-8", "backslashreplace") if lost else ""
            problems.append(_cut_short(shown, at, name))
            yield Block(shown, line, kept, tuple(problems), first)
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
            tail, line, begun, found = _first_header(shown, tail, line, last)
            problems += found
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
    """Whether the kind of a file can be told from so much of its text."""
    long_enough = len(start) >= kinds.START_BYTES and b"\n" in start
    return long_enough or len(start) >= _SNIFF_BYTES


def _recognise(path: str, start: bytes) -> tables.Table | None:
    """The table that begins so; None for FASTA.

    Raises:
      FastaError: It is neither; says what it is.
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
    """What reading a damaged file raises."""
    return (*unpacking.errors(), OSError)


def _damaged(path: str, line: int, error: Exception) -> FastaError:
    return FastaError(
        Problem(
            path,
            line,
            "",
            "damaged file",
            f"cannot be read behind this line: {error}. Download or copy it again.",
            fatal=True,
        )
    )


def _other_kind(path: str, detail: str, line: int = 0) -> FastaError:
    return FastaError(Problem(path, line, "", "another kind of file", detail, True))


def _first_header(
    path: str, text: bytes, line: int, last: bool
) -> tuple[bytes, int, bool, list[Problem]]:
    """Passes over what stands before the first header: text, its line, found?"""
    text = text.removeprefix(_BOM)
    at = 0 if text.startswith(b">") else text.find(b"\n>") + 1
    found = text.startswith(b">") or at > 0
    if not (found or last or len(text) > MAX_RECORD_BYTES):
        return text, line, False, []
    before = text[:at] if found else text
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
            if not found and any(mark in part for mark in b",;\t"):
                detail = f"{problem.detail} {_TABLE_NEEDS}"
                problem = dataclasses.replace(problem, detail=detail)
            if not found:
                raise FastaError(dataclasses.replace(problem, fatal=True))
            problems.append(problem)
            break
    if not (found or problems):
        problems.append(
            Problem(path, 0, "", "file without records", "the file holds no records.")
        )
    return text[at:], line + before.count(b"\n"), found, problems


def check_start(path: str, start: bytes) -> None:
    """Refuses a file whose first bytes are plain text, or none, without a header.

    Raises:
      FastaError: They hold something other than comments.
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
    """Unpacked text with LF line ends, in pieces of `size` bytes or more."""
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
