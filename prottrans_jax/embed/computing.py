"""Windows of the input through the model, and what comes out into shards.

Batches are planned from a whole window, sorted by length, even where parts of it are
done already: each vector is a function of the input and the settings alone.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import time
from typing import Any

from absl import logging
from jaxtyping import Bool, Float, UInt8
import numpy as np

from prottrans_jax.embed import (
    chunks,
    embedder,
    inputs,
    pooling,
    reports,
    settings,
    shards,
)

# Proteins that are sorted by length together: only their residues are held.
_WINDOW = 8192
_COMMIT_BYTES = 64 << 20
_COMMIT_SECONDS = 30.0
_COMMIT_PROTEINS = 8192


def compute(
    asked: settings.Settings,
    found: inputs.Inputs,
    entries: UInt8[np.ndarray, "records 32"],
    known: Bool[np.ndarray, " records"],
    parts: shards.Parts,
    report: reports.Report,
    on_progress: Callable[[reports.Progress], None],
) -> None:
    """Computes what is neither known nor in the shards, and commits it to them.

    Args:
      asked: What is computed.
      found: The input. A protein that does not fit into memory is left out of it.
      entries: Hashes under which the records are kept.
      known: True at records whose vectors exist elsewhere.
      parts: The shards.
      report: Gets the counts, the time and the padding.
      on_progress: Called after each protein.
    """
    to_plan = (found.fates == inputs.EMBED) & ~known
    missing = to_plan & (parts.find(entries)[:, 0] < 0)
    report.resumed = int((to_plan & ~missing).sum())
    if not missing.any():
        return
    in_pieces = np.zeros(len(missing), bool)
    if asked.cuts:
        in_pieces = found.lengths > asked.options.max_length
    started = time.perf_counter()
    total = int(missing.sum()), int(found.lengths[missing].sum())

    def too_large(work, error):
        where = np.zeros(len(missing), bool)
        where[[p.number for p in work.tag[work.batch.members[0]]]] = True
        logging.error("%s", error)
        found.leave_out(where, "does not fit into memory", lambda p: str(error))

    with _Committer(parts) as committer:
        for some, piecewise in ((to_plan & ~in_pieces, False), (in_pieces, True)):
            todo = some & to_plan
            if not (todo & missing).any():
                continue
            results = (
                _in_pieces(asked, found, todo & missing)
                if piecewise
                else _whole(asked, found, todo, missing, too_large, report)
            )
            for protein, embedding in results:
                committer.add(
                    shards.Item(
                        entries[protein.number].tobytes(),
                        _stored(asked, protein, embedding),
                    )
                )
                report.embedded += 1
                report.residues += len(protein.residues)
                on_progress(
                    reports.Progress(
                        report.embedded,
                        report.residues,
                        *total,
                        time.perf_counter() - started,
                    )
                )
        report.seconds = time.perf_counter() - started


def _whole(asked, found, todo, missing, too_large, report) -> Iterator[tuple]:
    """(protein, embedding) of proteins that go through the model in one piece."""
    runner = asked.make_embedder(
        pool="protein" in asked.paths, residues="residues" in asked.paths
    )
    buckets = runner.buckets(found.lengths[todo])
    in_windows = int(todo.sum()) > _WINDOW
    computed = real = 0

    def work():
        nonlocal computed, real
        for window in _windows(found.proteins(todo)):
            # The same sequence under several ids is computed once.
            alike: dict[bytes, list[inputs.Protein]] = {}
            for protein in window:
                alike.setdefault(protein.residues, []).append(protein)
            groups = list(alike.values())
            batches = runner.work(
                list(alike), buckets, tag=groups, more_to_come=in_windows
            )
            for item in batches:
                # Planned with all of the window, computed only where missing.
                if any(
                    missing[protein.number]
                    for i in item.batch.members
                    for protein in groups[i]
                ):
                    computed += item.batch.tokens
                    specials = runner.tokens.num_special * len(item.sequences)
                    real += sum(map(len, item.sequences)) + specials
                    yield item

    for item, member, embedding in runner.run(work(), too_large):
        for protein in item.tag[member]:
            if missing[protein.number]:
                yield protein, embedding
    report.padding = 1.0 - real / computed if computed else 0.0


def _in_pieces(asked, found, todo) -> Iterator[tuple]:
    """(protein, embedding) of those that are cut, one protein at a time."""
    limit = asked.options.max_length
    runner = asked.make_embedder(pool=False, residues=True)
    for protein in found.proteins(todo):
        pieces = [(0, limit)]
        if asked.options.long == "chunk":
            overlap = chunks.overlap(limit, asked.options.chunk_overlap)
            pieces = chunks.cut(len(protein.residues), limit, overlap)
        sequences = [protein.residues[start:stop] for start, stop in pieces]
        work = runner.work(sequences, runner.buckets([limit]))
        hidden: list[Any] = [None] * len(pieces)
        for _, member, embedding in runner.run(work):
            hidden[member] = np.array(embedding.residues, np.float32)
        whole = chunks.stitch(pieces, hidden)
        pooled = None
        if "protein" in asked.paths:
            pooled = pooling.pool_protein(whole, asked.pool)
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


def _stored(asked, protein, embedding) -> dict[str, np.ndarray]:
    """Arrays of each kind in the type that files have."""
    arrays = {}
    for kind in asked.paths:
        wide = embedding.residues if kind == "residues" else embedding.protein
        arrays[kind] = to_stored(wide, asked.dtypes[kind], protein.name)
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
                f"Values that are not finite for {name!r}. Are the model's weights, or "
                "the vectors to reuse, sound?"
            )
        raise ValueError(
            f"{name!r}: a value of {np.abs(wide).max():.4g} does not fit {dtype}. Use "
            "--output-dtype float32."
        )
    return stored


class _Committer:
    """Collects items and commits them in a thread, at most one shard behind."""

    def __init__(self, parts: shards.Parts):
        self._parts = parts
        self._items: list[shards.Item] = []
        self._bytes = 0
        self._last = time.monotonic()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "commit_shards")
        self._pending: concurrent.futures.Future | None = None

    def add(self, item: shards.Item) -> None:
        self._items.append(item)
        self._bytes += sum(array.nbytes for array in item.arrays.values())
        if (
            time.monotonic() - self._last > _COMMIT_SECONDS
            or self._bytes >= _COMMIT_BYTES
            or len(self._items) >= _COMMIT_PROTEINS
        ):
            self._submit()

    def _submit(self) -> None:
        self._wait()
        items, self._items, self._bytes = self._items, [], 0
        self._last = time.monotonic()
        if items:
            self._pending = self._pool.submit(self._parts.commit, items)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            # Stopped by a signal or an error: what is done is kept all the same.
            if not isinstance(error, OSError):
                self._submit()
            self._wait()
        finally:
            self._pool.shutdown()
