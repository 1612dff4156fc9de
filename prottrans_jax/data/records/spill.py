"""Out-of-core sorting for `prepare`: from blocks of FASTA to shuffled shards.

Each block becomes one segment file (`spill_files`), in which records are grouped by
bucket. A bucket becomes one shard. It is chosen by the hash of the sequence, so that
all copies of a sequence are in one bucket and are found with the memory of one shard. A
second table in each segment, grouped by the hash of the id, serves to find ids that are
used twice.

Bucket, order and split are functions of hashes, seed, file and line: the result does
not depend on the number of processes or the size of blocks.
"""

from collections.abc import Iterator
import dataclasses
import heapq
import pathlib

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.records import record_writer, shard_readers, spill_files
from prottrans_jax.files import digests
from prottrans_jax.proteins import fasta_blocks, fasta_problems, nucleotides, vocabulary

_LINE_BITS = 40
DROPPED = "dropped.npy"

TOO_SHORT = "shorter than --min_length"
TOO_LONG = "longer than --max_length"
REPEATED = "repeated record (same id, same sequence)"
DUPLICATE = "exact duplicate of another sequence"
SAME_ID = "id used for two sequences"
HELD_OUT = "same sequence as a record of another split, which is not trained on"
_NUCLEOTIDES_WAY_OUT = "Translate them; if they are proteins, pass --allow_nucleotides."


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings that all workers share.

    Attributes:
      folder: where segments, parts and shards are written.
      paths: inputs by their number in ordinals.
      splits: names of the splits; the first one is the default.
      given_splits: for each input, the number of the split for all its records; None:
        they are divided by the hash of ids.
      num_buckets: number of shards of the first split.
      held_out: share of ids, chosen by their hash, that goes to the second split.
      min_length: residues; shorter records are left out.
      max_length: residues; longer records are left out. None: no limit.
      deduplicate: whether only the first record of a sequence is kept.
      shuffle: whether records are shuffled, or kept in the order of the input.
      seed: of the shuffle.
      skip_bad: whether bad records are left out, or stop the run.
      allow_nucleotides: whether records of A, C, G, T, U and N count as proteins.
    """

    folder: pathlib.Path
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    given_splits: tuple[int | None, ...]
    num_buckets: int
    held_out: float
    min_length: int
    max_length: int | None
    deduplicate: bool
    shuffle: bool
    seed: int
    skip_bad: bool
    allow_nucleotides: bool


@dataclasses.dataclass(frozen=True)
class Spilled:
    """Result of `spill_block`: counts of one block of input `file`."""

    file: int
    num_records: int = 0
    num_residues: int = 0
    num_gaps: int = 0
    num_stops: int = 0
    num_only_x: int = 0
    # (reason, number, examples)
    skipped: tuple[tuple[str, int, tuple[str, ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Result of `sort_bucket`: the shard of the first split, if it is final.

    `num_moved`: number of copies that were moved into the split of another record.
    """

    shard: record_writer.WrittenShard | None
    skipped: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    num_moved: int = 0


class Skips:
    """Records left out, by reason; all of them are written to a file."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lines: dict[str, list[str]] = {}

    def add(self, reason: str, where: str, name: str) -> None:
        """Adds one record."""
        self._lines.setdefault(reason, []).append(f"{where}\t{name}")

    def close(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        """Writes the file if there are records; returns (reason, count, examples)."""
        if self._lines:
            with self._path.open("w", encoding="utf-8") as out:
                for reason, lines in self._lines.items():
                    out.writelines(f"{line}\t{reason}\n" for line in lines)
        return tuple(
            (reason, len(lines), tuple(line.replace("\t", " ") for line in lines[:3]))
            for reason, lines in self._lines.items()
        )


def spill_block(
    plan: Plan, number: int, file: int, block: fasta_blocks.Block
) -> Spilled:
    """Parses one block and writes its records as segment `number`.

    Args:
      plan: the run.
      number: of the segment.
      file: number of the input.
      block: text.

    Raises:
      FastaError: a record is bad and `plan.skip_bad` is False.
      NucleotidesError: the file holds nucleotides.
    """
    parsed = fasta_blocks.parse(block)
    problems = [*block.problems, *parsed.problems]
    if not plan.allow_nucleotides:
        parsed, of_bases = nucleotides.check(block, parsed, _NUCLEOTIDES_WAY_OUT)
        problems += of_bases
    skips = Skips(plan.folder / f"segment-{number:07d}.skipped")
    for problem in problems:
        if problem.fatal or not plan.skip_bad:
            raise fasta_problems.FastaError(problem)
        skips.add(problem.reason, f"{problem.path}:{problem.line}", problem.name)
    num_read = len(parsed.names)
    lengths = np.fromiter(map(len, parsed.residues), np.int64, num_read)
    low, high = plan.min_length, plan.max_length or 1 << 62
    fits = (low <= lengths) & (lengths <= high)
    if not fits.all():
        for i in np.flatnonzero(~fits).tolist():
            reason = TOO_SHORT if lengths[i] < low else TOO_LONG
            where = f"{block.path}:{parsed.lines[i]}"
            skips.add(reason, where, parsed.names[i].decode())
        lengths = lengths[fits]
        parsed = parsed.only(fits)
    names, residues = parsed.names, parsed.residues
    seq_hi, seq_lo = _hashes(residues)
    id_hi, id_lo = _hashes(names)
    meta = np.empty(len(names), spill_files.RECORD)
    meta["ordinal"] = np.array(parsed.lines, np.uint64) | np.uint64(file << _LINE_BITS)
    meta["seq_hi"], meta["seq_lo"] = seq_hi, seq_lo
    meta["id_hi"], meta["id_lo"] = id_hi, id_lo
    meta["size"] = np.fromiter(map(len, names), np.int64, len(names)) + 1 + lengths
    meta["length"] = lengths
    split = plan.given_splits[file]
    if split is not None:
        meta["split"] = split
    else:
        meta["split"] = meta["id_lo"] < np.uint64(plan.held_out * (1 << 63) * 2)
    buckets = shuffle_key(meta["seq_hi"], plan.seed) % np.uint64(plan.num_buckets)
    path = spill_files.segment(plan.folder, number)
    spill_files.write_segment(path, plan.num_buckets, buckets, meta, names, residues)
    return Spilled(
        file=file,
        num_records=num_read,
        num_residues=int(lengths.sum()),
        num_gaps=parsed.num_gaps,
        num_stops=parsed.num_stops,
        num_only_x=sum(not x.strip(vocabulary.X_LETTERS) for x in residues),
        skipped=skips.close(),
    )


def _hashes(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """First 128 bits of the SHA-256 of each text; processors compute it in hardware."""
    words = np.frombuffer(digests.raw_of_each(texts), "<u8").reshape(-1, 4)
    return words[:, 0], words[:, 1]


def check_ids(plan: Plan, num_segments: int, bucket: int) -> np.ndarray:
    """Finds the ids of one group that have two sequences.

    Returns:
      [conflicts, 2] uint64: ordinals of the record to leave out and of the first one.
    """
    entries = np.concatenate(
        [
            spill_files.read_ids(
                spill_files.segment(plan.folder, s), plan.num_buckets, bucket
            )
            for s in range(num_segments)
        ]
    )
    if _all_differ(entries["id_hi"]):
        return np.empty((0, 2), np.uint64)
    entries = np.sort(entries, order=["id_hi", "id_lo", "at"])
    same = (entries["id_hi"][1:] == entries["id_hi"][:-1]) & (
        entries["id_lo"][1:] == entries["id_lo"][:-1]
    )
    starts = np.flatnonzero(np.concatenate([[True], ~same]))[: len(entries)]
    counts = np.diff(np.append(starts, len(entries)))
    first = np.repeat(starts, counts)
    conflict = entries["seq_hi"] != entries["seq_hi"][first]
    return np.stack([entries["at"][conflict], entries["at"][first[conflict]]], axis=1)


def sort_bucket(plan: Plan, num_segments: int, bucket: int) -> Sorted:
    """Removes copies from one bucket, sorts the rest and writes it by split.

    No sequence gets into two splits: all its records go to the split of the first one.
    If it also occurs in an input for another split than training, the records from
    training inputs are left out. So are the ordinals in the file DROPPED, [n] uint64.

    Args:
      plan: the run.
      num_segments: number of segments.
      bucket: number of the bucket.
    """
    metas, blobs = [], []
    for number in range(num_segments):
        path = spill_files.segment(plan.folder, number)
        meta, blob = spill_files.read_bucket(path, plan.num_buckets, bucket)
        metas.append(meta)
        blobs.append(blob)
    meta, blob = np.concatenate(metas), b"".join(blobs)
    del metas, blobs
    ends = np.cumsum(meta["size"], dtype=np.int64)
    starts = ends - meta["size"]
    skips = Skips(plan.folder / f"bucket-{bucket:07d}.skipped")

    def leave_out(which: np.ndarray, reason: str) -> None:
        for i in which[np.argsort(meta["ordinal"][which])].tolist():
            name = blob[starts[i] : ends[i]].partition(b"\n")[0].decode()
            skips.add(reason, place(plan, int(meta["ordinal"][i])), name)

    keep = np.ones(len(meta), bool)
    if (plan.folder / DROPPED).exists():
        keep = ~np.isin(meta["ordinal"], np.load(plan.folder / DROPPED))
        leave_out(np.flatnonzero(~keep), SAME_ID)
    order = np.flatnonzero(keep)
    num_moved = 0
    # One cheap sort shows that there are no copies, the usual case.
    if not _all_differ(meta["seq_hi"]):
        # Copies of a sequence become neighbours; the first decides on the split.
        claims = _claims(plan, meta["ordinal"])
        order = np.lexsort((meta["ordinal"], claims, meta["seq_lo"], meta["seq_hi"]))
        order = order[keep[order]]
        copy = np.zeros(len(order), bool)
        copy[1:] = (np.diff(meta["seq_hi"][order]) == 0) & (
            np.diff(meta["seq_lo"][order]) == 0
        )
        leader = order[np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))]
        elsewhere = meta["split"][order] != meta["split"][leader]
        held_out = elsewhere & (claims[leader] == _NOT_TRAINED_ON)
        repeated = _repeated(meta[order], copy) & ~held_out
        leave_out(order[held_out], HELD_OUT)
        leave_out(order[repeated], REPEATED)
        dropped = held_out | repeated
        if plan.deduplicate:
            leave_out(order[copy & ~dropped], DUPLICATE)
            dropped |= copy
        num_moved = int((elsewhere & ~dropped).sum())
        meta["split"][order] = meta["split"][leader]
        order = order[~dropped]
    # By hash of the id or by place in the input; both differ between records.
    key = shuffle_key(meta["id_lo"], plan.seed) if plan.shuffle else meta["ordinal"]
    order = order[np.argsort(key[order])]

    shard = None
    splits = meta["split"][order]
    for split in range(len(plan.splits)):
        chosen = order[splits == split]
        chunks = _cut(blob, starts[chosen], ends[chosen], meta["length"][chosen])
        if split == 0 and plan.shuffle:
            path = plan.folder / f"bucket-{bucket:07d}.array_record"
            shard = record_writer.write_shard(path, chunks)
        elif len(chosen):
            path = spill_files.part(plan.folder, split, bucket)
            spill_files.write_part(path, meta[chosen], key[chosen], chunks)
    return Sorted(shard, skips.close(), num_moved)


# Precedence of the records of one sequence: inputs for a split that is not trained on,
# then inputs for training, then inputs that are divided by the hash of ids.
_NOT_TRAINED_ON, _TRAINED_ON, _DIVIDED = range(3)


def _claims(
    plan: Plan, ordinals: jaxtyping.UInt64[np.ndarray, " records"]
) -> jaxtyping.UInt8[np.ndarray, " records"]:
    of_file = [
        _DIVIDED if s is None else _TRAINED_ON if s == 0 else _NOT_TRAINED_ON
        for s in plan.given_splits
    ]
    files = ordinals >> np.uint64(_LINE_BITS)
    return np.array(of_file, np.uint8)[files.astype(np.int64)]


def _cut(
    blob: bytes, starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[list[bytes], list[int]]]:
    for first in range(0, len(starts), record_writer.CHUNK):
        some = slice(first, first + record_writer.CHUNK)
        spans = zip(starts[some].tolist(), ends[some].tolist(), strict=True)
        yield [blob[start:end] for start, end in spans], lengths[some].tolist()


def _all_differ(hashes: np.ndarray) -> bool:
    return bool((np.diff(np.sort(hashes)) != 0).all())


def _repeated(meta: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """Marks copies that also have the id of an earlier record of the same sequence."""
    repeated = np.zeros(len(meta), bool)
    seen: set[tuple[int, int]] = set()
    for i in np.flatnonzero(copy | np.append(copy[1:], False)).tolist():
        if not copy[i]:
            seen = set()
        name = (int(meta["id_hi"][i]), int(meta["id_lo"][i]))
        repeated[i] = name in seen
        seen.add(name)
    return repeated


def merged(plan: Plan, split: int) -> Iterator[tuple[bytes, int]]:
    """(payload, length) of a split's parts: by bucket, or in the order of the input."""
    paths = [spill_files.part(plan.folder, split, b) for b in range(plan.num_buckets)]
    parts = [spill_files.read_part(path) for path in paths if path.exists()]
    shard_readers.allow_open_files(len(parts))
    if plan.shuffle:
        for part in parts:
            yield from ((payload, length) for _, payload, length in part)
    else:
        for _, payload, length in heapq.merge(*parts):
            yield payload, length


def name_of(plan: Plan, num_segments: int, ordinal: int) -> str:
    """Id of the record with this ordinal."""
    for number in range(num_segments):
        path = spill_files.segment(plan.folder, number)
        for bucket in range(plan.num_buckets):
            meta, blob = spill_files.read_bucket(path, plan.num_buckets, bucket)
            for i in np.flatnonzero(meta["ordinal"] == ordinal).tolist():
                start = int(meta["size"][:i].sum())
                return blob[start:].partition(b"\n")[0].decode()
    raise AssertionError(ordinal)


def count(plan: Plan, split: int) -> int:
    """Records in the parts of a split."""
    paths = (spill_files.part(plan.folder, split, b) for b in range(plan.num_buckets))
    return sum(len(np.load(p, mmap_mode="r")) for p in paths if p.exists())


def place(plan: Plan, ordinal: int) -> str:
    """file:line of an ordinal."""
    line = ordinal & ((1 << _LINE_BITS) - 1)
    return f"{plan.paths[ordinal >> _LINE_BITS]}:{line}"


def shuffle_key(
    hashes: jaxtyping.UInt64[np.ndarray, " records"], seed: int
) -> jaxtyping.UInt64[np.ndarray, " records"]:
    """Pseudo-random numbers from hashes and seed."""
    digest = digests.blake2b_64(str(seed).encode())
    return random_bits.mix(hashes ^ np.frombuffer(digest, "<u8"))
