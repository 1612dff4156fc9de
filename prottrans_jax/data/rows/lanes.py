"""Rows that continue in the next batch, for models with memories.

A batch of B rows has B lanes. Record k of the run is in lane k mod B. A lane is the
concatenation of its records; row b of batch i holds tokens [i L, (i + 1) L) of lane b.
So no residue is lost or seen twice, proteins are cut only at the ends of rows, and the
content of a row follows from record lengths alone, as in `row_blocks`.

Example, rows of 4 tokens, two lanes, proteins of 5, 3, 2 and 6 tokens (a, b, c, d):

  batch 0   aaaa    batch 1   acc.
            bbbd              dddd

Rows depend on the seed and the number of lanes. A run must be resumed with its own
batch size.
"""

from collections.abc import Sequence
import dataclasses
import functools
import threading

import jaxtyping
import numpy as np

from prottrans_jax.data.rows import order as order_lib
from prottrans_jax.data.rows import row_blocks as rows_lib

# Records of a chunk, and the minimum of rounds (records per lane). The first token of
# each chunk is stored for each lane.
CHUNK_RECORDS = 65536
CHUNK_ROUNDS = 64


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Chunk `chunk` begins at token `tokens[b]` of lane b."""

    chunk: int
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Some rounds of records, each [rounds, lanes]; 0 where there is no record."""

    records: order_lib.RecordBlock
    residues: jaxtyping.Int64[np.ndarray, "rounds lanes"]
    tokens: jaxtyping.Int64[np.ndarray, "rounds lanes"]


class LanePlan:
    """Finds the pieces of any row of a run in lanes. Threads may share it."""

    def __init__(
        self,
        sources: Sequence[rows_lib.Source],
        order: order_lib.RecordOrder,
        num_lanes: int,
        row_length: int,
        *,
        num_epochs: int | None = None,
        anchor: Anchor | None = None,
    ):
        """Plans rows of `row_length` tokens; row r is in batch r // num_lanes.

        Args:
          sources: the components, as `order` numbers them.
          order: the order of records.
          num_lanes: rows of a batch.
          row_length: tokens of a row.
          num_epochs: number of epochs after which lanes end; shorter lanes end in empty
            rows.
          anchor: from `anchor` of an earlier plan.
        """
        self._sources = sources
        self._order = order
        self._num_lanes = num_lanes
        self._row_length = row_length
        self._num_records: int | None = None
        if num_epochs is not None:
            if len(order.sizes) > 1:
                raise ValueError(
                    "a mixture has no epochs; go through its tasks one by one."
                )
            self._num_records = num_epochs * order.sizes[0]
        self._rounds = max(CHUNK_ROUNDS, CHUNK_RECORDS // num_lanes)
        self._lock = threading.RLock()
        # Chunk -> its first token in each lane.
        self._begins = {0: np.zeros(num_lanes, np.int64)}
        if anchor is not None:
            self._begins[anchor.chunk] = np.asarray(anchor.tokens, np.int64)
        self._chunk = functools.lru_cache(maxsize=4)(self._make_chunk)

    def rows(self, rows: jaxtyping.Int64[np.ndarray, " rows"]) -> rows_lib.RowBlock:
        """Pieces of existing `rows` (ascending): whole records with their windows."""
        batches, lanes = np.divmod(rows, self._num_lanes)
        parts = [
            self._batch(int(batch), lanes[batches == batch])
            for batch in np.unique(batches)
        ]
        return rows_lib.concatenate(parts) if parts else self._batch(0, lanes[:0])

    def anchor(self, row: int) -> Anchor:
        """The last chunk that begins in or before the batch of `row` in all lanes."""
        first = row // self._num_lanes * self._row_length
        with self._lock:
            chunk = self._first_chunk(first, np.arange(self._num_lanes))
            return Anchor(chunk, self._begins[chunk].tolist())

    def total_rows(self) -> int:
        """Rows of a finite plan, to the end of its longest lane."""
        if self._num_records is None:
            raise ValueError("this plan never ends.")
        last = -(-self._num_records // (self._rounds * self._num_lanes))
        with self._lock:
            for chunk in range(last):
                if chunk + 1 not in self._begins:
                    self._count(chunk)
            longest = int(self._begins[last].max())
        return -(-longest // self._row_length) * self._num_lanes

    def _first_chunk(self, token: int, lanes: np.ndarray) -> int:
        """The last chunk that begins at or before `token` in all of `lanes`."""
        chunk = max(
            c for c, begins in self._begins.items() if (begins[lanes] <= token).all()
        )
        while not self._is_end(chunk + 1):
            if chunk + 1 not in self._begins:
                self._count(chunk)
            if (self._begins[chunk + 1][lanes] > token).any():
                break
            chunk += 1
        return chunk

    def _is_end(self, chunk: int) -> bool:
        records = chunk * self._rounds * self._num_lanes
        return self._num_records is not None and records >= self._num_records

    def _count(self, chunk: int) -> None:
        self._begins[chunk + 1] = self._begins[chunk] + self._chunk(chunk).tokens.sum(0)

    def _batch(self, batch: int, lanes: np.ndarray) -> rows_lib.RowBlock:
        first = batch * self._row_length
        last = first + self._row_length
        selections = []
        with self._lock:
            number = self._first_chunk(first, lanes)
            while not self._is_end(number):
                chunk = self._chunk(number)
                if number + 1 not in self._begins:
                    self._count(number)
                tokens = chunk.tokens[:, lanes]
                ends = self._begins[number][lanes] + np.cumsum(tokens, axis=0)
                begins = ends - tokens
                # Lane by lane.
                row, turn = np.nonzero(
                    ((ends > first) & (begins < last) & (tokens > 0)).T
                )
                selections.append(
                    (number, chunk, row, turn, begins[turn, row], ends[turn, row])
                )
                number += 1
                if (self._begins[number][lanes] >= last).all():
                    break
        if not selections:
            number, chunk = 0, self._chunk(0)
            empty = np.zeros(0, np.int64)
            selections = [(0, chunk, empty, empty, empty, empty)]
        rows = np.concatenate([f[2] for f in selections])
        by_row = np.argsort(rows, kind="stable")

        def gather(values: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(values)[by_row]

        at = [(turn, lanes[row]) for _, _, row, turn, _, _ in selections]
        begins = gather([f[4] for f in selections])
        ends = gather([f[5] for f in selections])
        window_begins = np.maximum(begins, first)
        records = [f[1].records for f in selections]
        return rows_lib.RowBlock(
            component=gather(
                [r.component[a] for r, a in zip(records, at, strict=True)]
            ),
            record=gather([r.record[a] for r, a in zip(records, at, strict=True)]),
            epoch=gather([r.epoch[a] for r, a in zip(records, at, strict=True)]),
            start=np.zeros(len(rows), np.int64),
            length=gather(
                [f[1].residues[a] for f, a in zip(selections, at, strict=True)]
            ),
            splits=np.searchsorted(rows[by_row], np.arange(len(lanes) + 1)),
            window=rows_lib.Window(
                first=window_begins - begins,
                count=np.minimum(ends, last) - window_begins,
                segment=gather([f[0] * self._rounds + f[3] + 1 for f in selections]),
            ),
        )

    def _make_chunk(self, number: int) -> _Chunk:
        shape = (self._rounds, self._num_lanes)
        count = self._rounds * self._num_lanes
        counter = np.arange(count) + number * count
        exists = np.ones(count, bool)
        if self._num_records is not None:
            exists = counter < self._num_records
            counter = np.minimum(counter, self._num_records - 1)
        records = self._order.at(counter)
        residues = np.zeros(count, np.int64)
        tokens = np.zeros(count, np.int64)
        for c, source in enumerate(self._sources):
            places = np.flatnonzero((records.component == c) & exists)
            residues[places] = source.lengths[records.record[places]]
            tokens[places] = source.corruption.num_tokens(residues[places])[:, 0]
        return _Chunk(
            order_lib.RecordBlock(
                records.component.reshape(shape),
                records.record.reshape(shape),
                records.epoch.reshape(shape),
            ),
            residues.reshape(shape),
            tokens.reshape(shape),
        )
