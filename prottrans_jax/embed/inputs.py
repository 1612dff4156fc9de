"""Scans and reads the input: all FASTA files are checked before any computation.

Several files are one input, as if they were concatenated.

The scan keeps some 50 bytes of each record: hashes of key and sequence, length, line.
Sequences and headers are read again, in order, when they are needed.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
import pathlib
import shutil
import sys
from typing import NamedTuple

import numpy as np

from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import keys
from prottrans_jax.files import digests, folders
from prottrans_jax.files import paths as local_paths
from prottrans_jax.proteins import (
    fasta,
    fasta_blocks,
    fasta_problems,
    nucleotides,
    plurals,
    vocabulary,
)

ON_DUPLICATE = ("error", "suffix", "first")
# Checked at the start of standard input, before it is copied.
_START_BYTES = 64 << 10
# Fates of records.
EMBED, SAME, LEFT_OUT = 0, 1, 2
# Values of `RecordNote.action`.
SKIPPED, TRUNCATED, CHUNKED = "skipped", "truncated", "chunked"
_NUCLEOTIDES_WAY_OUT = (
    "Translate them; if they are proteins, pass --allow-nucleotides (in Python "
    "allow_nucleotides=True)."
)


class DuplicateError(ValueError):
    """A key stands for two sequences."""


class Protein(NamedTuple):
    """A record of the input.

    Attributes:
      number: Index among the records that could be read, from 0.
      key: Name in the output.
      name: First word of the header.
      description: Rest of the header.
      residues: Upper-case residues.
      line: Line of the header, from 1.
      path: File that holds the record.
    """

    number: int
    key: str
    name: str
    description: str
    residues: bytes
    line: int
    path: str = ""

    @property
    def place(self) -> str:
        """FILE:LINE, for messages."""
        return f"{self.path}:{self.line}"


@dataclasses.dataclass(frozen=True)
class RecordNote:
    """Names a record that is left out or cut, and the reason.

    Attributes:
      name: First word of the header.
      line: Line of the header, from 1.
      reason: Category, one of a few fixed texts.
      detail: Explanation for the user.
      action: `SKIPPED`, `TRUNCATED` or `CHUNKED`.
    """

    name: str
    line: int
    reason: str
    detail: str
    action: str = SKIPPED


@dataclasses.dataclass
class Letters:
    """Letters of the input that are not among the 20 amino acids.

    Attributes:
      gaps: Number of gap characters removed.
      stops: Number of stops removed from the ends of sequences.
      unusual: Count of each letter of `vocabulary.READ_AS_X` that occurs.
      only_x: Names of records that hold nothing but X and these letters.
    """

    gaps: int = 0
    stops: int = 0
    unusual: dict[str, int] = dataclasses.field(default_factory=dict)
    only_x: list[str] = dataclasses.field(default_factory=list)

    def add(self, parsed: fasta_blocks.Parsed) -> None:
        """Counts the letters of a block."""
        self.gaps += parsed.num_gaps
        self.stops += parsed.num_stops
        text = b"".join(parsed.residues)
        for letter in vocabulary.READ_AS_X:
            if number := text.count(letter.encode()):
                self.unusual[letter] = self.unusual.get(letter, 0) + number
        self.only_x += [
            name.decode()
            for name, residues in zip(parsed.names, parsed.residues, strict=True)
            if not residues.strip(vocabulary.X_LETTERS)
        ]


@dataclasses.dataclass
class Inputs:
    """The records of one or several FASTA files, in their order.

    Attributes:
      paths: The files.
      digests: SHA-256 of each file as stored.
      starts: Index of the first record of each file.
      key_scheme: One of `keys.SCHEMES`.
      entries: [records, 32] uint8: hash of the key, hash of the sequence.
      lengths: [records] residues.
      fates: [records] `EMBED`; `SAME` as an earlier record; `LEFT_OUT`.
      suffixes: By record, the number to append to its key, for duplicate keys.
      skipped: Records that are left out.
      cut: Records that are truncated or embedded in pieces.
      letters: Letters other than the 20 amino acids.
      longest: Name and index of the longest record.
      allow_nucleotides: Whether nucleotide sequences are accepted as proteins.
    """

    paths: tuple[str, ...]
    digests: tuple[str, ...]
    starts: np.ndarray
    key_scheme: str
    entries: np.ndarray
    lengths: np.ndarray
    fates: np.ndarray
    suffixes: dict[int, int]
    skipped: list[RecordNote]
    letters: Letters
    longest: tuple[str, int]
    allow_nucleotides: bool
    cut: list[RecordNote] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> str:
        """The file, or the first one and the number of others, for messages."""
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more

    @property
    def sha256(self) -> str:
        """SHA-256 of the file as stored; of several files, SHA-256 of their digests."""
        if len(self.digests) == 1:
            return self.digests[0]
        return digests.of_bytes("\n".join(self.digests).encode())

    def path_of(self, number: int) -> str:
        """The file that holds a record."""
        return self.paths[int(np.searchsorted(self.starts, number, side="right")) - 1]

    @property
    def chosen(self) -> np.ndarray:
        """Numbers of the records to embed."""
        return np.flatnonzero(self.fates == EMBED)

    def leave_out(self, where: np.ndarray, reason: str, detail: Callable) -> None:
        """Leaves chosen records out; `detail(protein)` explains it to the user."""
        where = np.asarray(where) & (self.fates == EMBED)
        if not where.any():
            return
        self.skipped += self._notes(where, reason, detail, SKIPPED)
        self.fates[where] = LEFT_OUT

    def note_cut(self, where: np.ndarray, action: str, detail: Callable) -> None:
        """Notes the chosen records that are truncated or embedded in pieces.

        Args:
          where: [records] True at these records.
          action: `TRUNCATED` or `CHUNKED`.
          detail: `detail(protein)` explains it to the user.
        """
        where = np.asarray(where) & (self.fates == EMBED)
        if not where.any():
            return
        self.cut += self._notes(where, "longer than the limit", detail, action)

    def _notes(
        self, where: np.ndarray, reason: str, detail: Callable, action: str
    ) -> list[RecordNote]:
        several = len(self.paths) > 1
        return [
            RecordNote(
                protein.name,
                protein.line,
                reason,
                f"{protein.place}: {detail(protein)}" if several else detail(protein),
                action,
            )
            for protein in self.proteins(where)
        ]

    def longest_chosen(self) -> tuple[str, int]:
        """Name and residues of the longest chosen record; "" and 0 if there is none."""
        lengths = np.where(self.fates == EMBED, self.lengths, 0)
        if not lengths.any():
            return "", 0
        name, number = self.longest
        at = int(lengths.argmax())
        if at != number:
            name = next(self.proteins(np.arange(len(lengths)) == at)).name
        return name, int(lengths[at])

    def proteins(self, where: np.ndarray | None = None) -> Iterator[Protein]:
        """Reads the files again; yields records in `where`, by default the chosen.

        Raises:
          ValueError: A file changed since the scan.
        """
        selected = (self.fates == EMBED) if where is None else where
        index = -1
        # Unusable records were reported by the scan.
        records = _of_all(
            self.paths,
            lambda path: _records(path, self.allow_nucleotides, lambda problem: None),
        )
        for index, (path, (record, header)) in enumerate(records):
            if index >= len(selected):
                break
            if not selected[index]:
                continue
            protein = _protein(self.key_scheme, index, record, header)
            protein = protein._replace(path=path)
            entry = _entry(protein.key, record.residues)
            if entry != self.entries[index].tobytes():
                raise ValueError(f"{path} changed while it was being embedded.")
            if index in self.suffixes:
                protein = protein._replace(key=f"{protein.key}_{self.suffixes[index]}")
            yield protein
        if index + 1 != len(selected):
            raise ValueError(f"{self.path} changed while it was being embedded.")

    def stored_entries(self) -> np.ndarray:
        """`entries` with the hashes of the keys under which records are stored."""
        if not self.suffixes:
            return self.entries
        entries = self.entries.copy()
        where = np.zeros(len(entries), bool)
        where[list(self.suffixes)] = True
        for protein in self.proteins(where):
            entry = _entry(protein.key, protein.residues)
            entries[protein.number] = np.frombuffer(entry, np.uint8)
        return entries


def scan(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    key_scheme: str = "auto",
    on_bad: str = "error",
    on_duplicate: str = "error",
    allow_nucleotides: bool = False,
) -> Inputs:
    """Reads and checks FASTA files; keeps hashes and lengths of their records.

    Args:
      source: Plain or compressed FASTA: a file, or several in their order.
      key_scheme: One of `keys.SCHEMES`.
      on_bad: "error" raises at the first record that cannot be used, "skip" leaves it
        out.
      on_duplicate: Policy for a key that occurs again with another sequence: "error",
        "suffix" (KEY_2, KEY_3, ...) or "first" (leave the later ones out). The same key
        with the same sequence is always embedded once.
      allow_nucleotides: Whether sequences of A, C, G, T, U and N are accepted. If not,
        a file of them is refused; a single one among proteins is an unusable record.

    Raises:
      fasta_problems.FastaError: File and line of the first problem.
      nucleotides.NucleotidesError: The file holds nucleotides.
      DuplicateError: Keys that stand for two sequences, with their lines.
    """
    skipped: list[RecordNote] = []

    def on_problem(problem: fasta_problems.Problem) -> None:
        skipped.append(
            RecordNote(problem.name, problem.line, problem.reason, str(problem))
        )

    letters = Letters()
    entries, lengths, lines = bytearray(), [], []
    longest, longest_length = ("", -1), -1
    paths = tuple(local_paths.input_files(source, "source"))
    hashes = [digests.Sha256() for _ in paths]
    starts: list[int] = []
    columns: list[np.ndarray] = []
    handler = on_problem if on_bad == "skip" else None
    index = -1

    def read(path: str) -> Iterator[tuple[fasta_blocks.Record, bytes]]:
        starts.append(index + 1)
        sha256 = hashes[len(starts) - 1]
        return _records(path, allow_nucleotides, handler, letters, sha256)

    for index, (_, (record, header)) in enumerate(_of_all(paths, read)):
        protein = _protein(key_scheme, index, record, header)
        entries += _entry(protein.key, record.residues)
        lengths.append(len(record.residues))
        lines.append(record.line)
        if lengths[-1] > longest_length:
            longest, longest_length = (protein.name, index), lengths[-1]
        if len(lengths) == 1 << 16:
            columns.append(np.array([lengths, lines], np.int64))
            lengths, lines = [], []
    columns.append(np.array([lengths, lines], np.int64))
    all_lengths, all_lines = np.concatenate(columns, axis=1)
    table = np.frombuffer(entries, np.uint8).reshape(-1, 32)
    records = Inputs(
        paths=paths,
        digests=tuple(sha256.hexdigest() for sha256 in hashes),
        starts=np.array(starts),
        key_scheme=key_scheme,
        entries=table,
        lengths=all_lengths.astype(np.int32),
        fates=np.zeros(len(table), np.uint8),
        suffixes={},
        skipped=skipped,
        letters=letters,
        longest=longest,
        allow_nucleotides=allow_nucleotides,
    )
    _resolve_duplicates(records, all_lines, on_duplicate)
    return records


def spool(stream, folder: pathlib.Path) -> pathlib.Path:
    """Copies standard input to a file, since the input is read more than once.

    Raises:
      fasta_problems.FastaError: It does not begin like FASTA.
    """
    path, stream = folder / "standard_input.fasta", stream or sys.stdin.buffer
    try:
        with open(path, "wb") as file:
            start = stream.read(_START_BYTES)
            fasta.check_start("standard input", start)
            file.write(start)
            shutil.copyfileobj(stream, file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _of_all(
    paths: Sequence[str],
    read: Callable[[str], Iterator[tuple[fasta_blocks.Record, bytes]]],
) -> Iterator[tuple[str, tuple[fasta_blocks.Record, bytes]]]:
    """(file, (record, header)) of every record, in the order of the files."""
    for path in paths:
        for record in read(path):
            yield path, record


def _records(
    path: str | os.PathLike,
    allow_nucleotides: bool,
    on_problem: Callable[[fasta_problems.Problem], None] | None,
    letters: Letters | None = None,
    sha256: digests.Sha256 | None = None,
) -> Iterator[tuple[fasta_blocks.Record, bytes]]:
    """(record, header) of every usable record; see `fasta_problems.raise_or_report`.

    Args:
      path: The file.
      allow_nucleotides: As in `scan`.
      on_problem: Called with each problem; if None, the first one is raised.
      letters: Its counts are updated.
      sha256: Updated with the bytes of the file as stored.
    """
    stream = folders.opened(os.fspath(path))
    for block in fasta.blocks(path, digest=sha256, stream=stream):
        stop_signals.check()
        parsed = fasta_blocks.parse(block, headers=True)
        problems = [*block.problems, *parsed.problems]
        if not allow_nucleotides:
            parsed, more = nucleotides.check(block, parsed, _NUCLEOTIDES_WAY_OUT)
            problems += more
        fasta_problems.raise_or_report(problems, on_problem)
        if letters is not None:
            letters.add(parsed)
        for record in zip(
            map(fasta_blocks.Record, parsed.names, parsed.residues, parsed.lines),
            parsed.headers,
            strict=True,
        ):
            stop_signals.check()
            yield record


def _protein(scheme, index, record, header) -> Protein:
    name, text = record.name.decode(), header.decode().strip()
    key = keys.make(scheme, name, text, record.residues, index)
    description = text[len(name) :].strip()
    return Protein(index, key, name, description, record.residues, record.line)


def key_hash(key: str) -> bytes:
    """16 bytes by which a key is recognised."""
    return digests.raw(key.encode())[:16]


def _entry(key: str, residues: bytes) -> bytes:
    return key_hash(key) + digests.raw(residues)[:16]


def _resolve_duplicates(records: Inputs, lines: np.ndarray, on_duplicate: str) -> None:
    key_hashes = np.ascontiguousarray(records.entries[:, :16]).view("S16").ravel()
    _, first, group, counts = np.unique(
        key_hashes, return_index=True, return_inverse=True, return_counts=True
    )
    different: list[tuple[int, int]] = []
    names: dict[int, dict[int, int]] = {}
    for index in np.flatnonzero(counts[group] > 1).tolist():
        original = int(first[group[index]])
        if index == original:
            continue
        # Several sequences may share a key; each is embedded once.
        earlier = names.setdefault(int(group[index]), {original: 1})
        same = [
            i
            for i in earlier
            if records.entries[i, 16:].tobytes()
            == records.entries[index, 16:].tobytes()
        ]
        if same:
            records.fates[index] = SAME
        else:
            earlier[int(index)] = len(earlier) + 1
            different.append((original, int(index)))
    if not different:
        return
    if on_duplicate == "suffix":
        for group_members in names.values():
            for index, number in group_members.items():
                if number > 1:
                    records.suffixes[index] = number
        taken = {row[:16].tobytes() for row in records.entries}
        for protein in records.proteins(_marks(records, records.suffixes)):
            if key_hash(protein.key) in taken:
                raise DuplicateError(
                    f"{protein.place}: the id {protein.name!r} occurs twice "
                    f"with different sequences, and {protein.key!r} is also taken. "
                    "Rename one, or choose --key header or --key index."
                )
        return
    where = _marks(records, [index for _, index in different])
    proteins = list(records.proteins(where))
    if on_duplicate == "error":
        first_lines = {index: int(lines[original]) for original, index in different}
        firsts = {index: original for original, index in different}
        shown = "; ".join(
            f"{p.name!r} in lines {first_lines[p.number]} and {p.line}"
            if len(records.paths) == 1
            else f"{p.name!r} at {records.path_of(firsts[p.number])}:"
            f"{first_lines[p.number]} and {p.place}"
            for p in proteins[:5]
        )
        ids = plurals.count(len(different), "id")
        verb = "occurs" if len(different) == 1 else "occur"
        raise DuplicateError(
            f"{records.path}: {ids} {verb} again with another sequence: {shown}. "
            "Rename, or choose --on-duplicate suffix or first, or --key header."
        )
    for protein in proteins:
        records.skipped.append(
            RecordNote(
                protein.name,
                protein.line,
                "id occurred before with another sequence",
                f"{protein.place}: {protein.name!r} occurred before with another "
                "sequence.",
            )
        )
    records.fates[where] = LEFT_OUT


def _marks(records: Inputs, indices) -> np.ndarray:
    where = np.zeros(len(records.fates), bool)
    where[list(indices)] = True
    return where
