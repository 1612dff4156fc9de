"""Makes a prepared folder from FASTA: several processes, bounded memory.

Pass 1 reads, checks and hashes the input block by block and writes it to disk by
bucket. Pass 2 finds ids with two sequences. Pass 3 turns each bucket into a shuffled
shard without duplicates. Meanwhile the output's file system also holds the text.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import dataclasses
import itertools
import os
import shutil
import time
from typing import Any

import numpy as np

from prottrans_jax.data.records import input_sources, record_writer, spill, worker_pool
from prottrans_jax.data.records import manifest as manifest_lib
from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import digests
from prottrans_jax.proteins import fasta_blocks, fasta_problems

SKIPPED_FILE = record_writer.SKIPPED_FILE
SHARD_BYTES = 64 << 20  # Of text: about 35 MB on disk, 170,000 proteins.
_MAX_SHARDS = 4096
MIN_BLOCK_BYTES = 2 << 20
_PIECE_BYTES = 16 << 10
# For input of unknown size that is larger than one shard.
_SHARDS_OF_UNKNOWN = 256
_EXPECTED_REASONS = (
    spill.TOO_SHORT,
    spill.TOO_LONG,
    spill.REPEATED,
    spill.DUPLICATE,
    spill.HELD_OUT,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `prepare`. All but `num_processes` affect the result.

    Attributes:
      validation_fraction: share of proteins, chosen by the hash of their id, that goes
        to the split "validation". Ignored if a source is for that split.
      min_length: residues; shorter records are left out, counted and named.
      max_length: residues; longer records likewise. None: no limit (long records are
        cut when rows are made).
      deduplicate: keep only the first record of a sequence; else keep all of them, in
        the split of the first.
      shuffle: put all records in a random order, else keep the order of the input.
      seed: of the shuffle.
      num_shards: of the split "train"; None: 64 MiB of text each.
      on_bad: "error" stops at the first bad record; "skip" leaves bad ones out.
      allow_nucleotides: whether records of A, C, G, T, U and N count as proteins. If
        not, a file of them is refused, and a single one is a bad record.
      num_processes: number of processes for parsing, sorting and packing.
    """

    validation_fraction: float = 0.01
    min_length: int = 1
    max_length: int | None = None
    deduplicate: bool = True
    shuffle: bool = True
    seed: int = 0
    num_shards: int | None = None
    on_bad: str = "error"
    allow_nucleotides: bool = False
    num_processes: int = 1

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"--validation_fraction={self.validation_fraction} is not in [0, 1)."
            )
        if self.min_length < 1:
            raise ValueError(f"--min_length={self.min_length} is below 1 residue.")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(
                f"--max_length={self.max_length} is below "
                f"--min_length={self.min_length}: nothing would be left."
            )
        if self.num_shards is not None and not 1 <= self.num_shards <= 99_999:
            raise ValueError(f"--num_shards={self.num_shards} is not in [1, 99999].")
        if self.on_bad not in ("error", "skip"):
            raise ValueError(f"--on_bad={self.on_bad} is neither error nor skip.")
        if self.num_processes < 1:
            raise ValueError(f"--num_processes={self.num_processes} is below 1.")


@dataclasses.dataclass(frozen=True)
class Report:
    """Counts of a finished `prepare`, for its summary."""

    manifest: manifest_lib.Manifest
    seconds: float
    records_read: int
    residues_read: int
    num_gaps: int
    num_stops: int
    num_only_x: int  # Records with no letter that stands for one amino acid.
    # Reason -> (number, examples)
    skipped: dict[str, tuple[int, tuple[str, ...]]]

    @property
    def num_bad(self) -> int:
        """Records left out because they are bad, not because of an option."""
        return sum(
            n
            for reason, (n, _) in self.skipped.items()
            if reason not in _EXPECTED_REASONS
        )


def prepare(
    sources: Iterable[input_sources.Source],
    output: str | os.PathLike,
    *,
    name: str,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Makes the folder `output` from the records of `sources`.

    Args:
      sources: inputs. The first of several copies of a sequence is kept; copies in a
        source for another split than "train" have precedence.
      output: the folder to make.
      name: of the data set.
      options: see `Options`.
      overwrite: whether a finished folder may be replaced.
      progress: called with a line of text every few seconds.

    Raises:
      FastaError: a record is bad; names its place.
      ValueError: no records are left, or the folder cannot be written.
    """
    options = options or Options()
    # Validation first: the first of two copies is kept.
    ordered = sorted(sources, key=lambda s: s.split != "validation")
    started = time.monotonic()
    with (
        record_writer.Writer(output, name=name, overwrite=overwrite) as writer,
        stop_signals.before_exit(writer.abandon),
    ):
        run = _Run(ordered, writer, options, progress)
        size = input_sources.total_bytes(ordered)
        small = size is not None and size < SHARD_BYTES // 2
        with worker_pool.started(1 if small else options.num_processes) as pool:
            run.spill(pool)
            run.check_ids(pool)
            run.sort(pool)
        run.assemble()
        run.name_skipped()
        shutil.rmtree(run.folder)
        saved_options = dataclasses.asdict(options)
        del saved_options["num_processes"]
        if not options.allow_nucleotides:
            # So that such manifests equal those of earlier versions.
            del saved_options["allow_nucleotides"]
        manifest = writer.finish(
            inputs=run.inputs,
            options=saved_options,
            skipped={reason: n for reason, (n, _) in sorted(run.skipped.items())},
            moved_copies=run.num_moved,
        )
    return Report(
        manifest=manifest,
        seconds=time.monotonic() - started,
        records_read=run.totals["records"],
        residues_read=run.totals["residues"],
        num_gaps=run.totals["gaps"],
        num_stops=run.totals["stops"],
        num_only_x=run.totals["only_x"],
        skipped=run.skipped,
    )


class _Run:
    """The passes of one `prepare`."""

    def __init__(
        self,
        sources: list[input_sources.Source],
        writer: record_writer.Writer,
        options: Options,
        progress: Callable[[str], None],
    ):
        self.sources = sources
        self.writer = writer
        self.options = options
        self.folder = writer.work / "spill"
        self.folder.mkdir()
        self.totals: collections.Counter[str] = collections.Counter()
        self.skipped: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.inputs: list[dict[str, Any]] = []
        self.num_segments = 0
        self.num_moved = 0
        self.plan: spill.Plan
        self._progress = progress
        self._started = self._last_progress = time.monotonic()

    def spill(self, pool: concurrent.futures.Executor) -> None:
        """Pass 1."""
        splits = ["train", "validation"]
        splits += sorted({s.split for s in self.sources if s.split} - set(splits))
        blocks = self._blocks()
        head: collections.deque[tuple[int, fasta_blocks.Block]] = collections.deque()
        head_bytes = 0
        if (input_sources.total_bytes(self.sources) or 0) <= SHARD_BYTES:
            # Small or of unknown size: check whether it fits into one shard.
            for item in blocks:
                head.append(item)
                head_bytes += len(item[1].data)
                if head_bytes > SHARD_BYTES:
                    break
        fits = 0 < head_bytes <= SHARD_BYTES
        options = self.options
        has_validation = any(s.split == "validation" for s in self.sources)
        self.plan = spill.Plan(
            folder=self.folder,
            paths=tuple(s.path for s in self.sources),
            splits=tuple(splits),
            given_splits=tuple(
                None if s.split is None else splits.index(s.split) for s in self.sources
            ),
            num_buckets=options.num_shards or (1 if fits else self._num_shards()),
            held_out=0.0 if has_validation else options.validation_fraction,
            min_length=options.min_length,
            max_length=options.max_length,
            deduplicate=options.deduplicate,
            shuffle=options.shuffle,
            seed=options.seed,
            skip_bad=options.on_bad == "skip",
            allow_nucleotides=options.allow_nucleotides,
        )

        def calls() -> Iterator[tuple]:
            first = (head.popleft() for _ in range(len(head)))
            for number, (file, block) in enumerate(itertools.chain(first, blocks)):
                yield spill.spill_block, self.plan, number, file, block

        for done in worker_pool.in_order(pool, self._width, calls()):
            self.num_segments += 1
            self.inputs[done.file]["num_records"] += done.num_records
            self.totals["records"] += done.num_records
            self.totals["residues"] += done.num_residues
            self.totals["gaps"] += done.num_gaps
            self.totals["stops"] += done.num_stops
            self.totals["only_x"] += done.num_only_x
            self._note(done.skipped)
            self._report_progress("read")

    @property
    def _width(self) -> int:
        return 2 * self.options.num_processes

    def _blocks(self) -> Iterator[tuple[int, fasta_blocks.Block]]:
        for file, source in enumerate(self.sources):
            digest = digests.Sha256()
            self.inputs.append({"path": source.path, "num_records": 0})
            for block in source.blocks(digest, self._block_bytes()):
                yield file, block
            self.inputs[file].update(
                sha256=digest.hexdigest(), num_bytes=digest.num_bytes
            )

    def _num_shards(self) -> int:
        size = input_sources.total_bytes(self.sources)
        if size is None:
            return _SHARDS_OF_UNKNOWN
        return min(max(-(-size // SHARD_BYTES), 1), _MAX_SHARDS)

    def _block_bytes(self) -> int:
        # Small blocks stay in cache, but every shard reads a piece of every block.
        size = input_sources.total_bytes(self.sources) or 0
        pieces = min(size // SHARD_BYTES, _MAX_SHARDS)
        return max(MIN_BLOCK_BYTES, pieces * _PIECE_BYTES)

    def check_ids(self, pool: concurrent.futures.Executor) -> None:
        """Pass 2."""
        calls = (
            (spill.check_ids, self.plan, self.num_segments, b)
            for b in range(self.plan.num_buckets)
        )
        parts = [c for c in worker_pool.in_order(pool, self._width, calls) if len(c)]
        if not parts:
            return
        conflicts = np.concatenate(parts)
        conflicts = conflicts[np.argsort(conflicts[:, 0])]
        if not self.plan.skip_bad:
            at, first = conflicts[0].tolist()
            name = spill.name_of(self.plan, self.num_segments, at)
            path, _, line = spill.place(self.plan, at).rpartition(":")
            raise fasta_problems.FastaError(
                fasta_problems.Problem(
                    path,
                    int(line),
                    name,
                    spill.SAME_ID,
                    f"id {name!r} has another sequence at "
                    f"{spill.place(self.plan, first)}; {len(conflicts)} such ids. "
                    "Rename one, or pass --on_bad=skip to keep the first.",
                )
            )
        np.save(self.folder / spill.DROPPED, conflicts[:, 0])

    def sort(self, pool: concurrent.futures.Executor) -> None:
        """Pass 3."""
        calls = (
            (spill.sort_bucket, self.plan, self.num_segments, b)
            for b in range(self.plan.num_buckets)
        )
        for bucket, done in enumerate(worker_pool.in_order(pool, self._width, calls)):
            if done.shard is not None:
                self.writer.adopt("train", done.shard)
            self.num_moved += done.num_moved
            self._note(done.skipped)
            self._report_progress(f"shard {bucket + 1} of {self.plan.num_buckets};")

    def assemble(self) -> None:
        """Writes the shards that pass 3 does not: other splits, unshuffled records."""
        plan = self.plan
        counts = [spill.count(plan, s) for s in range(len(plan.splits))]
        if plan.shuffle:
            counts[0] = sum(s.num_records for s in self.writer.written["train"])
        if not any(counts):
            raise ValueError(
                f"{', '.join(plan.paths)}: no records are left. Left out: "
                + "; ".join(f"{n} {reason}" for reason, (n, _) in self.skipped.items())
            )
        # A source without a split "train" gives no empty one.
        if not counts[0]:
            self.writer.drop("train")
        for split, count in enumerate(counts):
            if not count or (split == 0 and plan.shuffle):
                continue
            share = plan.num_buckets * count / max(counts[0], count)
            num_shards = min(count, max(1, round(share)))
            records = spill.merged(plan, split)
            for k in range(num_shards):
                size = (k + 1) * count // num_shards - k * count // num_shards
                path = self.folder / f"split-{split}-{k}.array_record"
                chunks = record_writer.chunked(itertools.islice(records, size))
                shard = record_writer.write_shard(path, chunks)
                self.writer.adopt(plan.splits[split], shard)

    def name_skipped(self) -> None:
        """Joins the lists of records left out into one file."""
        paths = sorted(
            self.folder.glob("*.skipped"), key=lambda p: (p.name[0] == "b", p.name)
        )
        if not paths:
            return
        with (self.writer.work / SKIPPED_FILE).open("wb") as out:
            out.write(b"place\tid\treason\n")
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out)

    def _note(self, skipped: Iterable[tuple[str, int, tuple[str, ...]]]) -> None:
        for reason, number, examples in skipped:
            total, shown = self.skipped.get(reason, (0, ()))
            self.skipped[reason] = (total + number, (*shown, *examples)[:3])

    def _report_progress(self, step: str) -> None:
        now = time.monotonic()
        if now - self._last_progress > 5:
            self._last_progress = now
            seconds = now - self._started
            self._progress(
                f"{step} {self.totals['records']:,} records, "
                f"{self.totals['residues']:,} residues, "
                f"{self.totals['records'] / seconds:,.0f} records/s"
            )
