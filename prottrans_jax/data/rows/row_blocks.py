"""Rows of a run and what they are made of, found without reading a record.

Rows are numbered from the start of the run. Block after block of records is packed as
it is needed; how many rows came before a block is remembered, and an anchor from an
earlier run spares counting again.
"""

import bisect
from collections.abc import Sequence
import dataclasses
import functools
import threading

import jaxtyping
import numpy as np

from prottrans_jax.data.corruption import streams
from prottrans_jax.data.rows import order as order_lib
from prottrans_jax.data.rows import packing, random_bits

Pieces = jaxtyping.Int64[np.ndarray, " pieces"]


@dataclasses.dataclass(frozen=True)
class Source:
    """One component as the plan of rows sees it: lengths and an objective."""

    lengths: jaxtyping.Integer[np.ndarray, " records"]
    corruption: streams.Corruption


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Block `block` of a run begins with row `first_row`."""

    block: int
    first_row: int


@dataclasses.dataclass(frozen=True)
class Window:
    """Which tokens of each piece are in its row, where that is not all of them.

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
    """The rows of one block; pieces stand in the order of their rows.

    Attributes:
      component, record, epoch: of each piece, see `order.RecordBlock`.
      start: first residue of the piece within its record, 0-based.
      length: residues of the piece.
      splits: pieces of row i are splits[i] .. splits[i + 1] - 1. [rows + 1]
      window: of rows in lanes; None: every piece is in its row in full.
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
        """The same for some of the rows, in the order asked."""
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
class _Known:
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
          num_epochs: rows end after so many epochs; None: never.
          anchor: a known border of blocks.
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
        # Consecutive blocks whose borders are known: counted from the start of the run,
        # and from the anchor of a resumed one.
        self._known = [_Known(0, [0])]
        if anchor.block:
            self._known.append(_Known(anchor.block, [anchor.first_row]))
        # Called under the lock: threads wait for a block instead of packing it too.
        self._block = functools.lru_cache(maxsize=4)(self._make_block)

    def block(self, number: int) -> RowBlock:
        """Rows of block `number`."""
        with self._lock:
            return self._block(number)

    def anchor(self, row: int) -> Anchor:
        """The block that `row` is in, and its first row."""
        with self._lock:
            known = next(k for k in reversed(self._known) if k.borders[0] <= row)
            while row >= known.borders[-1]:
                if not self._count_block(known):
                    raise IndexError(f"row {row} of {known.borders[-1]}.")
            at = bisect.bisect_right(known.borders, row) - 1
            return Anchor(known.first_block + at, known.borders[at])

    def total_rows(self) -> int:
        """Rows of a finite plan: packs all its blocks."""
        if self._num_blocks is None:
            raise ValueError("this plan never ends.")
        with self._lock:
            while self._count_block(self._known[-1]):
                pass
            return self._known[-1].borders[-1]

    def rows(self, rows: jaxtyping.Int64[np.ndarray, " rows"]) -> RowBlock:
        """Pieces of `rows` (rising), which must exist."""
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

    def _count_block(self, known: _Known) -> bool:
        """Finds out where the next block ends; False if there is none."""
        number = known.first_block + len(known.borders) - 1
        if number == self._num_blocks:
            return False
        known.borders.append(known.borders[-1] + self._block(number).num_rows)
        return True

    def _make_block(self, number: int) -> RowBlock:
        records = self._order.block(number)
        seed = self._order.seed
        parts = []
        for c, source in enumerate(self._sources):
            of = np.flatnonzero(records.component == c)
            crop_keys = random_bits.fold(
                random_bits.key(seed, order_lib.CROP, c), records.epoch[of]
            )
            index, start, length = packing.cut(
                source.lengths[records.record[of]],
                self._max_residues[c],
                self._long_sequences,
                random_bits.fold(crop_keys, records.record[of]),
            )
            tokens = source.corruption.num_tokens(length)
            parts.append((of[index], start, length, tokens))
        at, start, length, tokens = (
            np.concatenate(p) for p in zip(*parts, strict=True)
        )
        # Back into the order of the records, components mixed.
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
        """Packing puts rows of long proteins first: shuffle them, or sort by record."""
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
