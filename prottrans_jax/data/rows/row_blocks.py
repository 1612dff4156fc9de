"""Plans the rows of a run from record lengths, without reading a record.

Rows are numbered from the start of the run. Blocks of records are packed when they are
needed. The number of rows before each block is stored; an anchor from an earlier run
makes it unnecessary to count them again.
"""

import bisect
from collections.abc import Sequence
import dataclasses
import functools
import threading

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import streams
from prottrans_jax.data.rows import order as order_lib
from prottrans_jax.data.rows import packing

Pieces = jaxtyping.Int64[np.ndarray, " pieces"]


@dataclasses.dataclass(frozen=True)
class Source:
    """One component of a run: record lengths and a corruption."""

    lengths: jaxtyping.Integer[np.ndarray, " records"]
    corruption: streams.Corruption


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Block `block` of a run begins with row `first_row`."""

    block: int
    first_row: int


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens of each piece that are in its row, if a row may hold part of a piece.

    Attributes:
      first: first token of the piece that is in the row, 0-based.
      count: tokens in the row.
      segment: number of the piece along its lane, from 1.
    """

    first: Pieces
    count: Pieces
    segment: Pieces


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """The rows of one block; pieces are in the order of their rows.

    Attributes:
      component, record, epoch: of each piece, see `order.RecordBlock`.
      start: first residue of the piece within its record, 0-based.
      length: residues of the piece.
      splits: pieces of row i are splits[i] .. splits[i + 1] - 1. [rows + 1]
      window: of rows in lanes; None: every piece is completely in its row.
    """

    component: Pieces
    record: Pieces
    epoch: Pieces
    start: Pieces
    length: Pieces
    splits: jaxtyping.Int64[np.ndarray, " rows_plus_1"]
    window: Window | None = None

    @property
    def num_rows(self) -> int:
        """Rows in the block."""
        return len(self.splits) - 1

    def take(self, rows: jaxtyping.Int64[np.ndarray, " rows"]) -> "RowBlock":
        """Selects some of the rows, in the order of `rows`."""
        counts = (self.splits[1:] - self.splits[:-1])[rows]
        splits = np.concatenate([[0], np.cumsum(counts)])
        pieces = np.arange(splits[-1]) + np.repeat(
            self.splits[rows] - splits[:-1], counts
        )
        return RowBlock(
            self.component[pieces],
            self.record[pieces],
            self.epoch[pieces],
            self.start[pieces],
            self.length[pieces],
            splits,
        )


def concatenate(blocks: Sequence[RowBlock]) -> RowBlock:
    """Rows of several blocks, one after another."""
    if len(blocks) == 1:
        return blocks[0]
    offsets = np.cumsum([0] + [len(b.record) for b in blocks])
    splits = [b.splits[1:] + o for b, o in zip(blocks, offsets, strict=False)]
    names = ("component", "record", "epoch", "start", "length")
    windows = [b.window for b in blocks if b.window is not None]
    return RowBlock(
        **{n: np.concatenate([getattr(b, n) for b in blocks]) for n in names},
        splits=np.concatenate([[0], *splits]),
        window=Window(
            *(
                np.concatenate([getattr(w, f.name) for w in windows])
                for f in dataclasses.fields(Window)
            )
        )
        if windows
        else None,
    )


@dataclasses.dataclass(frozen=True)
class _CountedBlocks:
    """Block first_block + i has the rows from borders[i] to borders[i + 1]."""

    first_block: int
    borders: list[int]


class RowPlan:
    """Finds the pieces of any row of a run. Threads may share it."""

    def __init__(
        self,
        sources: Sequence[Source],
        order: order_lib.RecordOrder,
        row_lengths: tuple[int, ...],
        *,
        pack: bool,
        long_sequences: str,
        num_epochs: int | None = None,
        anchor: Anchor = Anchor(0, 0),
    ):
        """Plans rows of `row_lengths` tokens, one number for each stream.

        Args:
          sources: the components, as `order` numbers them.
          order: the order of records.
          row_lengths: tokens of a row.
          pack: several pieces a row; otherwise one.
          long_sequences: see `packing.cut`.
          num_epochs: number of epochs after which rows end; None: never.
          anchor: a block and its first row, from an earlier plan.
        """
        self._sources = sources
        self._order = order
        self._capacities = row_lengths
        self._pack = pack
        self._long_sequences = long_sequences
        self._max_residues = [s.corruption.max_residues(*row_lengths) for s in sources]
        self._num_blocks: int | None = None
        if num_epochs is not None:
            if order.blocks_per_epoch is None:
                raise ValueError(
                    "a mixture has no epochs; go through its tasks one by one. To "
                    "evaluate, bind the gin macro EVAL_MIXTURE_OR_TASK_NAME to one."
                )
            self._num_blocks = num_epochs * order.blocks_per_epoch
        self._lock = threading.RLock()
        # Borders of consecutive blocks: counted from the start of the run, and from the
        # anchor of a resumed run.
        self._counted = [_CountedBlocks(0, [0])]
        if anchor.block:
            self._counted.append(_CountedBlocks(anchor.block, [anchor.first_row]))
        # Called under the lock, so that threads do not pack the same block twice.
        self._block = functools.lru_cache(maxsize=4)(self._make_block)

    def block(self, number: int) -> RowBlock:
        """Rows of block `number`."""
        with self._lock:
            return self._block(number)

    def anchor(self, row: int) -> Anchor:
        """The block that contains `row`, and its first row."""
        with self._lock:
            counted = next(k for k in reversed(self._counted) if k.borders[0] <= row)
            while row >= counted.borders[-1]:
                if not self._count_block(counted):
                    raise IndexError(f"row {row} of {counted.borders[-1]}.")
            at = bisect.bisect_right(counted.borders, row) - 1
            return Anchor(counted.first_block + at, counted.borders[at])

    def total_rows(self) -> int:
        """Number of rows of a finite plan; packs all its blocks."""
        if self._num_blocks is None:
            raise ValueError("this plan never ends.")
        with self._lock:
            while self._count_block(self._counted[-1]):
                pass
            return self._counted[-1].borders[-1]

    def rows(self, rows: jaxtyping.Int64[np.ndarray, " rows"]) -> RowBlock:
        """Pieces of the existing `rows` (ascending)."""
        parts = []
        while len(rows):
            anchor = self.anchor(int(rows[0]))
            block = self.block(anchor.block)
            count = int(np.searchsorted(rows, anchor.first_row + block.num_rows))
            parts.append(block.take(rows[:count] - anchor.first_row))
            rows = rows[count:]
        return (
            concatenate(parts) if parts else self.block(0).take(np.zeros(0, np.int64))
        )

    def _count_block(self, counted: _CountedBlocks) -> bool:
        """Adds the end of the next block; False if there is none."""
        number = counted.first_block + len(counted.borders) - 1
        if number == self._num_blocks:
            return False
        counted.borders.append(counted.borders[-1] + self._block(number).num_rows)
        return True

    def _make_block(self, number: int) -> RowBlock:
        records = self._order.block(number)
        seed = self._order.seed
        parts = []
        for c, source in enumerate(self._sources):
            selected = np.flatnonzero(records.component == c)
            crop_keys = random_bits.fold(
                random_bits.key(seed, order_lib.CROP, c), records.epoch[selected]
            )
            index, start, length = packing.cut(
                source.lengths[records.record[selected]],
                self._max_residues[c],
                self._long_sequences,
                random_bits.fold(crop_keys, records.record[selected]),
            )
            tokens = source.corruption.num_tokens(length)
            parts.append((selected[index], start, length, tokens))
        at, start, length, tokens = (
            np.concatenate(p) for p in zip(*parts, strict=True)
        )
        # Restore the order of the records, with the components mixed.
        by_record = np.argsort(at, kind="stable")
        at, start, length = at[by_record], start[by_record], length[by_record]
        if self._pack:
            row, num_rows = packing.pack(tokens[by_record], self._capacities)
            row = self._reorder(row, num_rows, number)
        else:
            row, num_rows = np.arange(len(at)), len(at)
        by_row = np.argsort(row, kind="stable")
        at = at[by_row]
        return RowBlock(
            component=records.component[at],
            record=records.record[at],
            epoch=records.epoch[at],
            start=start[by_row],
            length=length[by_row],
            splits=np.searchsorted(row[by_row], np.arange(num_rows + 1)),
        )

    def _reorder(self, row: np.ndarray, num_rows: int, block: int) -> np.ndarray:
        """Shuffles rows or sorts them by record; packing puts long proteins first."""
        if self._order.shuffle:
            key = random_bits.key(self._order.seed, order_lib.ROWS, block)
            place = np.argsort(random_bits.fold(key, np.arange(num_rows)))
        else:
            first_piece = np.full(num_rows, len(row))
            np.minimum.at(first_piece, row, np.arange(len(row)))
            place = np.argsort(first_piece)
        rank = np.empty(num_rows, np.int64)
        rank[place] = np.arange(num_rows)
        return rank[row]
