"""Windows of the input through the model, and what comes out into shards.

Batches are planned from a whole window, sorted by length, even where parts of it are
done already: each vector is a function of the input and the settings alone.
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

# Proteins that are sorted by length together: only their residues are held.
_WINDOW = 8192
_COMMIT_BYTES = 64 << 20
_COMMIT_PROTEINS = 8192
_FIRST_COMMIT_S = 2.0


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
      on_progress: Called after each protein, and before each wait for the device.
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
    whole = asked.make_embedder(
        pool="protein" in asked.paths,
        residues="residues" in asked.paths,
        may_share_rows=True,
    )
    pieces = asked.make_embedder(pool=False, residues=True)
    limit = asked.options.max_length if asked.cuts else None
    costs = whole.cost(np.minimum(found.lengths, limit or found.lengths.max()))
    pace = reports.Pace(
        int(missing.sum()),
        int(found.lengths[missing].sum()),
        float(costs[missing].sum()),
    )

    def tell(computing: str | None = None) -> None:
        pace.compile_seconds = whole.compile_seconds + pieces.compile_seconds
        pace.computing = pace.computing if computing is None else computing
        on_progress(pace.progress(time.perf_counter() - started))

    def too_large(work, error):
        where = np.zeros(len(missing), bool)
        where[[p.number for p in work.tag[work.batch.members[0]]]] = True
        logging.error("%s", error)
        found.leave_out(where, "does not fit into memory", lambda p: str(error))

    with (
        Committer(parts, asked.options.commit_seconds) as committer,
        stop_signals.before_exit(committer.flush),
    ):
        for some, piecewise in ((to_plan & ~in_pieces, False), (in_pieces, True)):
            todo = some & to_plan
            if not (todo & missing).any():
                continue
            results = (
                _in_pieces(asked, found, pieces, todo & missing, tell)
                if piecewise
                else _whole(found, whole, todo, missing, too_large, report, tell)
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
                pace.add(len(protein.residues), float(costs[protein.number]))
                tell()
        report.seconds = time.perf_counter() - started


def _whole(found, runner, todo, missing, too_large, report, tell) -> Iterator[tuple]:
    """(protein, embedding) of proteins that go through the model in one piece."""
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

    def waiting(item):
        members = [item.tag[member][0] for member in item.batch.members]
        tell(_described(members))

    for item, member, embedding in runner.run(work(), too_large, waiting):
        for protein in item.tag[member]:
            if missing[protein.number]:
                yield protein, embedding
    report.padding = 1.0 - real / computed if computed else 0.0


def _described(proteins: list[inputs.Protein]) -> str:
    longest = max(proteins, key=lambda protein: len(protein.residues))
    size = f"{len(longest.residues):,} residues"
    if len(proteins) == 1:
        return f"{longest.name} ({size})"
    return f"{len(proteins):,} proteins of up to {size}"


def _in_pieces(asked, found, runner, todo, tell) -> Iterator[tuple]:
    """(protein, embedding) of those that are cut, one protein at a time."""
    limit = asked.options.max_length
    for protein in found.proteins(todo):
        tell(_described([protein]))
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


class Committer:
    """Commits items in a thread of its own, at most one shard behind.

    Items wait for others until there are enough for a shard, or the first of them has
    waited for long enough; see `wait_s`.
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
        """Takes an item; if that fills a shard, waits until the shard is begun.

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
        """Returns when all that was added is committed, or cannot be."""
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
        """Seconds until there is something to commit; None: until something changes."""
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
            except BaseException as caught:  # The main thread's to raise.
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
            # Stopped by a signal or an error: what is done is kept all the same.
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None and error is not self._error:
            raise self._error


def wait_s(elapsed_s: float, commit_seconds: float) -> float:
    """Seconds that results may wait for others to share a shard with.

    A tenth of the time since the start, so that a job that is killed within its first
    minute has something to go on from; then `commit_seconds`; and a hundredth in jobs
    of hours: a day of slow results makes 470 shards instead of 2,900.
    """
    early = max(_FIRST_COMMIT_S, 0.1 * elapsed_s)
    return max(min(early, commit_seconds), 0.01 * elapsed_s)
