"""Reads FASTA from real sources as a stream, with a defined result for every anomaly.

Read: plain, gz (any number of members), bz2, xz, Zstandard, LZ4 and a zip of one file,
recognised by the first bytes, not by the name; "-" is standard input. Lines end with
LF, CRLF or CR. A byte order mark is skipped. Tables with a header row, such as
UniProt's TSV, are read too (`proteins.tables`). `proteins.fasta_blocks` says what
becomes of each record.

Refused, as a problem that names file, line and record (`proteins.fasta_problems`): no
header before the first sequence; a file without records; a compressed file that is
truncated or damaged; a record, a row of a table or comments of over 64 MiB. For files
of other kinds the message names the kind (`proteins.kinds`).

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
from typing import IO

from prottrans_jax.proteins import (
    fasta_blocks,
    fasta_problems,
    kinds,
    tables,
    unpacking,
)

BLOCK_BYTES = 2 << 20
MAX_RECORD_BYTES = 64 << 20
# Maximum bytes of the first line of a table.
_SNIFF_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_TABLE_NEEDS = "A table needs a first row that names its columns, such as id,sequence."


def read(
    paths: Iterable[str | os.PathLike],
    *,
    on_problem: Callable[[fasta_problems.Problem], None] | None = None,
) -> Iterator[fasta_blocks.Record]:
    """Records of FASTA files in order, with one block in memory at a time.

    Args:
      paths: files; "-" is standard input.
      on_problem: called with each problem; its record is left out. None: the first
        problem is raised.

    Raises:
      fasta_problems.FastaError: the first problem, or a fatal one.
    """
    for path in paths:
        for block in blocks(path):
            parsed = fasta_blocks.parse(block)
            fasta_problems.raise_or_report(
                (*block.problems, *parsed.problems), on_problem
            )
            yield from map(
                fasta_blocks.Record, parsed.names, parsed.residues, parsed.lines
            )


def blocks(
    path: str | os.PathLike,
    *,
    block_bytes: int = BLOCK_BYTES,
    digest: unpacking.Digest | None = None,
    stream: IO[bytes] | None = None,
) -> Iterator[fasta_blocks.Block]:
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
    problems: list[fasta_problems.Problem] = []
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
            yield fasta_blocks.Block(shown, line, complete, tuple(problems), first)
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
                    yield fasta_blocks.Block(shown, line, b"", tuple(problems), first)
                    return
                continue
        border = len(tail) if last else tail.rfind(b"\n>") + 1
        if border:
            data, tail = tail[:border], tail[border:]
            yield fasta_blocks.Block(shown, line, data, tuple(problems), first)
            problems, first = [], False
            line += data.count(b"\n")
        elif len(tail) > MAX_RECORD_BYTES:
            name = tail.partition(b"\n")[0][1:80].decode("utf-8", "backslashreplace")
            raise fasta_problems.FastaError(
                fasta_problems.Problem(
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
      fasta_problems.FastaError: It is neither; names the kind of file.
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
) -> Iterator[fasta_blocks.Block]:
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
        except tables.RowTooLongError as e:
            raise fasta_problems.FastaError(
                fasta_problems.Problem(path, line + 1, "", "row too long", str(e), True)
            ) from e
        except _damage() as e:
            raise _damaged(path, line, e) from e
        if row is not None:
            line = row.line
            if row.fault is not None:
                problems.append(
                    fasta_problems.Problem(path, row.line, row.name, *row.fault)
                )
                continue
            header = f"{row.name} {row.description}".rstrip()
            text.append(f">{header}\n{row.sequence}\n".encode())
            lines.append(row.line)
            held += len(text[-1])
        if row is None and first and not (text or problems):
            detail = "the table holds no rows."
            problems.append(
                fasta_problems.Problem(path, 0, "", "file without records", detail)
            )
        if held >= block_bytes or (row is None and (text or problems)):
            data = b"".join(text)
            yield fasta_blocks.Block(
                path, 1, data, tuple(problems), first, tuple(lines)
            )
            text, lines, problems = [], [], []
            held, first = 0, False
        if row is None:
            return


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their ends.

    Raises:
      tables.RowTooLongError: A line is longer than `MAX_RECORD_BYTES`.
    """
    rest: list[bytes] = []
    held = 0
    for chunk in chunks:
        first, *lines = chunk.split(b"\n")
        rest.append(first)
        held += len(first)
        if held > MAX_RECORD_BYTES:
            raise tables.too_long(MAX_RECORD_BYTES)
        for line in lines:
            yield b"".join(rest) + b"\n"
            rest, held = [line], len(line)
    if held:
        yield b"".join(rest)


def _cut_short(path: str, line: int, name: str) -> fasta_problems.Problem:
    return fasta_problems.Problem(
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


def _damaged(path: str, line: int, error: Exception) -> fasta_problems.FastaError:
    return fasta_problems.FastaError(
        fasta_problems.Problem(
            path,
            line,
            "",
            "damaged file",
            f"cannot be read after this line: {error}. Download or copy it again.",
            fatal=True,
        )
    )


def _other_kind(path: str, detail: str, line: int = 0) -> fasta_problems.FastaError:
    return fasta_problems.FastaError(
        fasta_problems.Problem(path, line, "", "another kind of file", detail, True)
    )


def _first_header(
    path: str, text: bytes, line: int, last: bool
) -> tuple[bytes, int, bool, list[fasta_problems.Problem]]:
    """Skips text before the first header.

    Returns:
      The remaining text, its line, whether there is a header, and problems.
    """
    text = text.removeprefix(_BOM)
    at = 0 if text.startswith(b">") else text.find(b"\n>") + 1
    has_header = text.startswith(b">") or at > 0
    if not (has_header or last or len(text) > MAX_RECORD_BYTES):
        return text, line, False, []
    if not (has_header or last):
        raise fasta_problems.FastaError(
            fasta_problems.Problem(
                path,
                line,
                "",
                "no header",
                f"no '>' header in the first {MAX_RECORD_BYTES >> 20} MiB of text. Is "
                "this FASTA?",
                fatal=True,
            )
        )
    before = text[:at] if has_header else text
    problems = []
    for k, part in enumerate(before.split(b"\n")):
        if part.strip() and not part.startswith(b";"):
            problem = fasta_problems.Problem(
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
                raise fasta_problems.FastaError(
                    dataclasses.replace(problem, fatal=True)
                )
            problems.append(problem)
            break
    if not (has_header or problems):
        problems.append(
            fasta_problems.Problem(
                path, 0, "", "file without records", "the file holds no records."
            )
        )
    return text[at:], line + before.count(b"\n"), has_header, problems


def check_start(path: str, start: bytes) -> None:
    """Refuses a plain file whose first bytes are text without a header.

    Raises:
      fasta_problems.FastaError: They hold more than comments and are not a table.
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


def _lines_of(
    stream: IO[bytes], digest: unpacking.Digest | None, size: int
) -> Iterator[bytes]:
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
