"""Runs the model on the input, window by window, and commits vectors to shards.

Batches are planned from a whole window, sorted by length, even if some of its proteins
are already computed: each vector is a function of the input and the settings alone.
"""

from collections.abc import Callable, Iterator
import threading
import time
from typing import Any

from absl import logging
from jaxtyping import Bool, Float, UInt8
import numpy as np

from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import (
    chunks,
    embedder,
    inputs,
    pooling,
    reports,
    settings,
    shards,
)

# Proteins that are sorted by length together; memory holds the residues of one window.
_WINDOW = 8192
_COMMIT_BYTES = 64 << 20
_COMMIT_PROTEINS = 8192
_FIRST_COMMIT_S = 2.0


def compute(
    job_settings: settings.Settings,
    records: inputs.Inputs,
    entries: UInt8[np.ndarray, "records 32"],
    reusable: Bool[np.ndarray, " records"],
    parts: shards.Parts,
    report: reports.Report,
    on_progress: Callable[[reports.Progress], None],
) -> None:
    """Computes vectors that are neither reusable nor in the shards, and commits them.

    Args:
      job_settings: Resolved settings of the job.
      records: Records of the input. Proteins that do not fit into memory are marked as
        left out.
      entries: Hashes by which shards identify the records.
      reusable: True at records whose vectors exist in another file.
      parts: The shards.
      report: Counts, time and padding are added to it.
      on_progress: Called after each protein, and before each wait for the device.
    """
    to_plan = (records.fates == inputs.EMBED) & ~reusable
    missing = to_plan & (parts.find(entries)[:, 0] < 0)
    report.resumed = int((to_plan & ~missing).sum())
    if not missing.any():
        return
    in_pieces = np.zeros(len(missing), bool)
    if job_settings.cuts:
        in_pieces = records.lengths > job_settings.options.max_length
    started = time.perf_counter()
    whole = job_settings.make_embedder(
        pool="protein" in job_settings.paths,
        residues="residues" in job_settings.paths,
        may_share_rows=True,
    )
    pieces = job_settings.make_embedder(pool=False, residues=True)
    limit = job_settings.options.max_length if job_settings.cuts else None
    costs = whole.cost(np.minimum(records.lengths, limit or records.lengths.max()))
    pace = reports.Pace(
        int(missing.sum()),
        int(records.lengths[missing].sum()),
        float(costs[missing].sum()),
    )

    def report_progress(computing: str | None = None) -> None:
        pace.compile_seconds = whole.compile_seconds + pieces.compile_seconds
        pace.computing = pace.computing if computing is None else computing
        on_progress(pace.progress(time.perf_counter() - started))

    def too_large(work, error):
        where = np.zeros(len(missing), bool)
        where[[p.number for p in work.tag[work.batch.members[0]]]] = True
        logging.error("%s", error)
        records.leave_out(where, "does not fit into memory", lambda p: str(error))

    with (
        Committer(parts, job_settings.options.commit_seconds) as committer,
        stop_signals.before_exit(committer.flush),
    ):
        for group, piecewise in ((to_plan & ~in_pieces, False), (in_pieces, True)):
            todo = group & to_plan
            if not (todo & missing).any():
                continue
            results = (
                _embed_in_pieces(
                    job_settings, records, pieces, todo & missing, report_progress
                )
                if piecewise
                else _embed_whole(
                    records, whole, todo, missing, too_large, report, report_progress
                )
            )
            for protein, embedding in results:
                committer.add(
                    shards.Item(
                        entries[protein.number].tobytes(),
                        _stored_arrays(job_settings, protein, embedding),
                    )
                )
                report.embedded += 1
                report.residues += len(protein.residues)
                pace.add(len(protein.residues), float(costs[protein.number]))
                report_progress()
        report.seconds = time.perf_counter() - started


def _embed_whole(
    records, runner, todo, missing, too_large, report, report_progress
) -> Iterator[tuple]:
    """(protein, embedding) of proteins that the model takes whole."""
    buckets = runner.buckets(records.lengths[todo])
    in_windows = int(todo.sum()) > _WINDOW
    computed = real = 0

    def work():
        nonlocal computed, real
        for window in _windows(records.proteins(todo)):
            # A sequence with several ids is computed once.
            alike: dict[bytes, list[inputs.Protein]] = {}
            for protein in window:
                alike.setdefault(protein.residues, []).append(protein)
            groups = list(alike.values())
            batches = runner.work(
                list(alike), buckets, tag=groups, more_to_come=in_windows
            )
            for item in batches:
                # The plan covers the whole window; only batches with missing ones run.
                if any(
                    missing[protein.number]
                    for i in item.batch.members
                    for protein in groups[i]
                ):
                    computed += item.batch.tokens
                    specials = runner.tokens.num_special * len(item.sequences)
                    real += sum(map(len, item.sequences)) + specials
                    yield item

    def waiting(item):
        members = [item.tag[member][0] for member in item.batch.members]
        report_progress(_describe(members))

    for item, member, embedding in runner.run(work(), too_large, waiting):
        for protein in item.tag[member]:
            if missing[protein.number]:
                yield protein, embedding
    report.padding = 1.0 - real / computed if computed else 0.0


def _describe(proteins: list[inputs.Protein]) -> str:
    longest = max(proteins, key=lambda protein: len(protein.residues))
    size = f"{len(longest.residues):,} residues"
    if len(proteins) == 1:
        return f"{longest.name} ({size})"
    return f"{len(proteins):,} proteins of up to {size}"


def _embed_in_pieces(
    job_settings, records, runner, todo, report_progress
) -> Iterator[tuple]:
    """(protein, embedding) of truncated or chunked proteins, one at a time."""
    limit = job_settings.options.max_length
    for protein in records.proteins(todo):
        report_progress(_describe([protein]))
        pieces = [(0, limit)]
        if job_settings.options.long == "chunk":
            overlap = chunks.overlap(limit, job_settings.options.chunk_overlap)
            pieces = chunks.cut(len(protein.residues), limit, overlap)
        sequences = [protein.residues[start:stop] for start, stop in pieces]
        work = runner.work(sequences, runner.buckets([limit]))
        hidden: list[Any] = [None] * len(pieces)
        for _, member, embedding in runner.run(work):
            hidden[member] = np.array(embedding.residues, np.float32)
        whole = chunks.stitch(pieces, hidden)
        pooled = None
        if "protein" in job_settings.paths:
            pooled = pooling.pool_protein(whole, job_settings.pool)
        yield protein, embedder.Embedding(whole, pooled)


def _windows(proteins) -> Iterator[list[inputs.Protein]]:
    window: list[inputs.Protein] = []
    for protein in proteins:
        window.append(protein)
        if len(window) == _WINDOW:
            yield window
            window = []
    if window:
        yield window


def _stored_arrays(job_settings, protein, embedding) -> dict[str, np.ndarray]:
    """Arrays of each kind in the type that is stored."""
    arrays = {}
    for kind in job_settings.paths:
        wide = embedding.residues if kind == "residues" else embedding.protein
        arrays[kind] = to_stored(wide, job_settings.dtypes[kind], protein.name)
    return arrays


def to_stored(
    array: Float[np.ndarray, "*shape"], dtype: np.dtype, name: str
) -> Float[np.ndarray, "*shape"]:
    """Vectors of protein `name` in the type that a file holds.

    Raises:
      ValueError: A value is not finite, or too large for the type.
    """
    with np.errstate(over="ignore"):
        stored = np.asarray(array).astype(dtype)
    if not np.isfinite(stored).all():
        wide = np.asarray(array, np.float32)
        if not np.isfinite(wide).all():
            raise ValueError(
                f"Values that are not finite for {name!r}. Check the model's weights, "
                "or the vectors to reuse."
            )
        raise ValueError(
            f"{name!r}: a value of {np.abs(wide).max():.4g} does not fit {dtype}. Use "
            "--output-dtype float32."
        )
    return stored


class Committer:
    """Commits items in a thread of its own, at most one shard behind.

    Items are collected until they fill a shard, or until the oldest has waited for
    `wait_s` seconds.
    """

    def __init__(self, parts: shards.Parts, commit_seconds: float):
        self._parts = parts
        self._commit_seconds = commit_seconds
        self._items: list[shards.Item] = []
        self._bytes = 0
        self._started = time.monotonic()
        self._oldest = 0.0
        self._flush = self._busy = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._commit_all, name="commit_shards", daemon=True
        )

    def add(self, item: shards.Item) -> None:
        """Adds an item; if that fills a shard, waits until the thread takes it.

        Raises:
          OSError: An earlier shard could not be written.
        """
        with self._changed:
            if not self._items:
                self._oldest = time.monotonic()
            self._items.append(item)
            self._bytes += sum(array.nbytes for array in item.arrays.values())
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not self._is_full())
            if self._error is not None:
                raise self._error

    def flush(self) -> None:
        """Waits until all items are committed, or a commit failed."""
        with self._changed:
            self._flush = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error or not (self._items or self._busy)
            )
            self._flush = False

    def _is_full(self) -> bool:
        return self._bytes >= _COMMIT_BYTES or len(self._items) >= _COMMIT_PROTEINS

    def _left(self) -> float | None:
        """Seconds until the next commit; None while no item is waiting."""
        if not self._items:
            return None
        if self._flush or self._closed or self._is_full():
            return 0.0
        now = time.monotonic()
        wait = wait_s(self._oldest - self._started, self._commit_seconds)
        return max(0.0, self._oldest + wait - now)

    def _commit_all(self) -> None:
        while True:
            with self._changed:
                while (left := self._left()) != 0.0 and not self._closed:
                    self._changed.wait(left)
                items, self._items, self._bytes = self._items, [], 0
                if not items:
                    return
                self._busy = True
                self._changed.notify_all()
            error = None
            try:
                self._parts.commit(items)
            except BaseException as caught:  # Raised by the main thread.
                error = caught
            with self._changed:
                self._busy, self._error = False, error
                self._changed.notify_all()
            if error is not None:
                return

    def __enter__(self) -> "Committer":
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._changed:
            if isinstance(error, OSError):
                self._items = []
            # After a signal or another error, finished items are still committed.
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None and error is not self._error:
            raise self._error


def wait_s(elapsed_s: float, commit_seconds: float) -> float:
    """Seconds that results may wait before they are committed.

    First a tenth of the time since the start, so that a job killed within its first
    minute keeps some results; then `commit_seconds`; in jobs of hours a hundredth of
    the time: a day of slow results makes 470 shards instead of 2,900.
    """
    early = max(_FIRST_COMMIT_S, 0.1 * elapsed_s)
    return max(min(early, commit_seconds), 0.01 * elapsed_s)
