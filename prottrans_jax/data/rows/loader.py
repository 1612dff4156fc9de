"""Batches of a run, computed from record lengths, without tf.data.

The pieces of row r follow from record lengths alone (`row_blocks`, `lanes`). They are
read by random access and corrupted by stateless random draws. So each host makes its
own part of any batch, a run resumes without delay on any number of hosts, and step N
can be replayed.

Row r is determined by the seed, r, the prepared records, and the loader's settings: row
lengths, packing, `block_records`, and in lanes the batch size. The order of records
depends on (seed, epoch). A crop depends on (seed, component, epoch, record), and a
corruption also on the first residue of the piece; component is the task's index in its
mixture. Nothing depends on the host.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import jaxtyping
import numpy as np
import seqio

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import streams
from prottrans_jax.data.rows import (
    assembly,
    lanes,
    loader_states,
    packing,
    task_components,
)
from prottrans_jax.data.rows import order as order_lib
from prottrans_jax.data.rows import row_blocks as rows_lib

# Records that are packed together: takes 0.2 s; more records do not fill rows better.
BLOCK_RECORDS = 65536


class RowLoader:
    """Global batches of a SeqIO task or mixture over prepared records.

      loader = RowLoader("uniref50_iid_denoise", "train", batch_size=2048)
      part = loader.batch(step, rows=slice(256, 512))  # rows of this host

    `.batch` may be called from several threads at once, for any batches in any order.
    Ascending order is the fastest.
    """

    def __init__(
        self,
        task: str | seqio.Task | seqio.Mixture,
        split: str = "train",
        *,
        batch_size: int,
        feature_lengths: Mapping[str, int] | None = None,
        pack: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        long_sequences: str = "split",
        num_epochs: int | None = None,
        data_dir: str | os.PathLike | None = None,
        block_records: int = BLOCK_RECORDS,
    ):
        """Opens the records of `task`; reads their lengths, no sequences.

        Args:
          task: a task or mixture, or its name (importing `prottrans_jax.tasks`
            registers the library's). Its source must be a `RecordSource`, its
            preprocessors those of `preprocessors.pretraining`.
          split: "train" or "validation".
          batch_size: rows of the global batch.
          feature_lengths: tokens of a row, {"inputs": 512, "targets": 512} for T5,
            {"inputs": 512} for all others.
          pack: put several proteins into a row; else one, as for ProtT5.
          shuffle: use a new order in every epoch; else the order of the records.
          seed: of order, crops and corruption.
          long_sequences: "split" or "crop", see `packing.cut`.
          num_epochs: number of epochs after which the loader ends; None: never. Empty
            rows fill up the last batch.
          data_dir: see `corpora.find`.
          block_records: number of records that are packed together. It affects the
            order of rows.

        Raises:
          ValueError: the corpus is not prepared, the task has other sources or
            preprocessors, or an argument is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; there must be 1 row or more.")
        if num_epochs is not None and num_epochs < 1:
            raise ValueError(f"num_epochs={num_epochs}: must be at least 1, or None.")
        if block_records < 1:
            raise ValueError(f"block_records={block_records} is not positive.")
        if long_sequences not in packing.LONG_SEQUENCES:
            raise ValueError(
                f"long_sequences={long_sequences!r} is not one of "
                f"{', '.join(packing.LONG_SEQUENCES)}."
            )
        self.batch_size = batch_size
        self._components = task_components.of_task(
            task, split, data_dir, long_sequences
        )
        self._component_states = [loader_states.of(c) for c in self._components]
        self._layouts = task_components.layouts(self._components)
        self._lengths = _row_lengths(feature_lengths, self._layouts)
        self._in_lanes = self._components[0].corrupt.corruption.in_lanes
        if self._in_lanes and (not pack or long_sequences != "split"):
            raise ValueError(
                f"pack={pack}, long_sequences={long_sequences!r}: the rows of this "
                "task continue in the next batch and hold whole proteins, so it needs "
                "pack=True and long_sequences='split'."
            )
        self._task_name = task if isinstance(task, str) else task.name
        self._split_name = split
        self._settings: dict[str, Any] = {
            "pack": pack,
            "shuffle": shuffle,
            "seed": seed,
            "long_sequences": long_sequences,
            "num_epochs": num_epochs,
            "block_records": block_records,
        }
        self._order = order_lib.RecordOrder(
            sizes=tuple(c.split.num_records for c in self._components),
            rates=tuple(c.rate for c in self._components),
            seed=seed,
            shuffle=shuffle,
            block_records=block_records,
        )
        self._row_offset = 0
        self._plan = self._new_plan(None)

    def _new_plan(
        self, anchor: Mapping[str, Any] | None
    ) -> rows_lib.RowPlan | lanes.LanePlan:
        parts = [
            rows_lib.Source(c.split.lengths, c.corrupt.corruption)
            for c in self._components
        ]
        if self._in_lanes:
            return lanes.LanePlan(
                parts,
                self._order,
                self.batch_size,
                self._lengths[0],
                num_epochs=self._settings["num_epochs"],
                anchor=lanes.Anchor(**anchor) if anchor else None,
            )
        return rows_lib.RowPlan(
            parts,
            self._order,
            self._lengths,
            pack=self._settings["pack"],
            long_sequences=self._settings["long_sequences"],
            num_epochs=self._settings["num_epochs"],
            anchor=rows_lib.Anchor(**anchor) if anchor else rows_lib.Anchor(0, 0),
        )

    @property
    def vocab_size(self) -> int:
        """Size of the task's vocabulary; ids in a batch are below it."""
        return self._components[0].corrupt.corruption.vocabulary.size

    @property
    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each feature of a global batch."""
        return assembly.feature_shapes(self._layouts, self.batch_size, self._lengths)

    @property
    def num_batches(self) -> int | None:
        """Batches of a finite loader; None if it never ends."""
        if self._settings["num_epochs"] is None:
            return None
        num_rows = self._plan.total_rows() - self._row_offset
        return -(-num_rows // self.batch_size)

    def batch(
        self, index: int, rows: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> dict[str, np.ndarray]:
        """Features of global batch `index`, or of some of its rows.

        Args:
          index: of the batch, 0 or more.
          rows: a slice or indices of its `batch_size` rows; default: all.

        Raises:
          IndexError: there is no such batch or row.
          ValueError: a record is damaged; names the file and the record.
        """
        numbers, place, count = self._row_numbers(index, rows)
        pieces = self._plan.rows(numbers)
        corrupted = self._corrupt(pieces)
        # Rows beyond the end are empty.
        splits = np.pad(pieces.splits, (0, count - len(numbers)), mode="edge")
        numbering = None
        if pieces.window is not None:
            numbering = assembly.Numbering(pieces.window.segment, pieces.window.first)
        batch = assembly.assemble(corrupted, splits, self._lengths, numbering)
        return batch if place is None else {k: v[place] for k, v in batch.items()}

    def _row_numbers(
        self, index: int, rows: slice | Sequence[int] | np.ndarray
    ) -> tuple[jaxtyping.Int64[np.ndarray, " rows"], np.ndarray | None, int]:
        """Which rows of the run to make for some rows of batch `index`.

        Returns:
          numbers: Row numbers in the run, ascending; without rows beyond the end.
          place: Index of each requested row among the unique rows; None if they are
            ascending and unique already.
          count: Number of unique rows, those beyond the end included.
        """
        within = np.arange(self.batch_size)
        if isinstance(rows, slice):
            within = within[rows]
        else:
            within = np.asarray(rows, np.int64)
            if within.size and not 0 <= within.min() <= within.max() < self.batch_size:
                raise IndexError(
                    f"rows {within.min()} to {within.max()} of a batch of "
                    f"{self.batch_size}."
                )
        place = None
        if (np.diff(within) <= 0).any():
            within, place = np.unique(within, return_inverse=True)
        if index < 0 or (self.num_batches is not None and index >= self.num_batches):
            raise IndexError(f"batch {index} of {self.num_batches}.")
        numbers = self._row_offset + index * self.batch_size + within
        if self.num_batches is not None:
            numbers = numbers[numbers < self._plan.total_rows()]
        return numbers, place, len(within)

    def _corrupt(self, pieces: rows_lib.RowBlock) -> tuple[streams.Stream, ...]:
        """Reads and corrupts pieces; keeps their order."""
        piece_indices = [
            np.flatnonzero(pieces.component == c) for c in range(len(self._components))
        ]
        # Pieces of one record may be in several rows; the record is read once.
        unique_records = [
            np.unique(pieces.record[i], return_inverse=True) for i in piece_indices
        ]
        # Components are read concurrently.
        readings = [
            component.split.begin(record)
            for component, (record, _) in zip(
                self._components, unique_records, strict=True
            )
        ]
        parts, order = [], []
        for c, component in enumerate(self._components):
            indices = piece_indices[c]
            if len(indices) == 0 and c > 0:
                continue
            record, start = pieces.record[indices], pieces.start[indices]
            length = pieces.length[indices]
            which = unique_records[c][1]
            data = readings[c].residues()
            begins = np.cumsum([0] + [len(d) for d in data])[which] + start
            letters = np.frombuffer(b"".join(data), np.uint8)
            piece_begins = np.cumsum(length) - length
            at = np.arange(int(length.sum())) + np.repeat(begins - piece_begins, length)
            corruption = component.corrupt.corruption
            residues = corruption.vocabulary.byte_table[letters[at]]
            key = random_bits.key(self._settings["seed"], order_lib.CORRUPT, c)
            keys = random_bits.fold(
                random_bits.fold(key, pieces.epoch[indices]), record
            )
            keys = random_bits.fold(keys, start)
            parts.append(corruption.corrupt(residues, length, keys).streams)
            order.append(indices)
        corrupted = parts[0] if len(parts) == 1 else streams.merge(parts, order)
        if pieces.window is None:
            return corrupted
        first, count = pieces.window.first, pieces.window.count
        return tuple(stream.take(first, count) for stream in corrupted)

    def example_ids(
        self, index: int, rows: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> list[str]:
        """Ids of the records of a batch, row by row, one per piece."""
        numbers, _, _ = self._row_numbers(index, rows)
        pieces = self._plan.rows(numbers)
        ids = np.empty(len(pieces.record), object)
        for c, component in enumerate(self._components):
            indices = np.flatnonzero(pieces.component == c)
            ids[indices] = component.split.ids(pieces.record[indices])
        return ids.tolist()

    def state(self, next_index: int) -> dict[str, Any]:
        """State from which `restore` continues with batch `next_index`; plain JSON."""
        row = self._row_offset + next_index * self.batch_size
        within = row
        if self._settings["num_epochs"] is not None:
            within = min(row, self._plan.total_rows() - 1)
        anchor = self._plan.anchor(within)
        return {
            "version": loader_states.VERSION,
            "next_row": row,
            "anchor": dataclasses.asdict(anchor),
            "batch_size": self.batch_size,
            "task": self._task_name,
            "split": self._split_name,
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        """All settings that determine the content of a row of given number."""
        return {
            "feature_lengths": list(self._lengths),
            "components": self._component_states,
            **self._settings,
            # The content of lanes depends on their number.
            **({"lanes": self.batch_size} if self._in_lanes else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> int:
        """Continues the run in which `state` was taken; the batch size may differ.

        Returns:
          Index of the next batch. If the new batch size does not divide the number of
          the next row, that batch begins at this row; earlier batches are not valid.

        Raises:
          ValueError: `state` has other data, seed or corruption; lists the differences.
            Or it is of an unknown version.
        """
        state = loader_states.in_this_form(state)
        lines = [
            *loader_states.component_differences(
                self._components, self._identity(), state
            ),
            *loader_states.differing(self._identity(), state, skip=("components",)),
        ]
        if lines:
            raise ValueError(
                "the saved run read other rows than this loader would (saved -> now):\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nGive the loader the run's settings, or start in a new folder."
            )
        index, self._row_offset = divmod(int(state["next_row"]), self.batch_size)
        self._plan = self._new_plan(state["anchor"])
        return index

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the predicted tokens of the split, in nats.

        Over the 20 amino acids and X, and `<eos>` if it is predicted: the loss of a
        model that knows only their frequencies.
        """
        counts: np.ndarray = np.zeros(256)
        for component in self._components:
            corruption = component.corrupt.corruption
            table = corruption.vocabulary.byte_table
            task_counts = np.zeros(256)
            for letter, count in component.split.alphabet.items():
                task_counts[table[ord(letter)]] += count
            specials = list(corruption.predicted_specials)
            task_counts[specials] += component.split.num_records
            # Rates are shares of records, so counts are those of a mean record.
            counts += task_counts * float(component.rate) / component.split.num_records
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())

    def describe(self) -> dict[str, Any]:
        """Size of the data and fill of the rows, from the first block of records.

        `fill`: share of the tokens of a row that are not padding (for T5, in the
        encoder's rows); `decoder_fill`: the same for the decoder. `residue_fill`:
        residues per token of a row, without special tokens. It may exceed 1 for span
        corruption, which replaces residues by fewer sentinels. Lanes have no padding
        before their ends, so no fill is given.
        """
        num_records = sum(self._order.sizes)
        num_residues = sum(c.split.num_residues for c in self._components)
        description: dict[str, Any] = {"records": num_records, "residues": num_residues}
        if isinstance(self._plan, lanes.LanePlan):
            return description
        block = self._plan.block(0)
        tokens = np.zeros((len(block.record), len(self._layouts)), np.int64)
        for c, component in enumerate(self._components):
            of_task = block.component == c
            lengths = block.length[of_task]
            tokens[of_task] = component.corrupt.corruption.num_tokens(lengths)
        space = np.array(self._lengths) * max(block.num_rows, 1)
        fill = (tokens.sum(0) / space).tolist()
        num_block_records = min(self._order.block_records, num_records)
        for layout, value in zip(self._layouts, fill, strict=True):
            description[layout.prefix.replace("encoder_", "") + "fill"] = value
        description |= {
            "residue_fill": float(block.length.sum() / space[0]),
            "proteins_per_row": len(block.record) / max(block.num_rows, 1),
        }
        if self._order.blocks_per_epoch is not None:
            # Exact if an epoch is one block, else an estimate.
            rows_per_epoch = round(block.num_rows * num_records / num_block_records)
            description["rows_per_epoch"] = rows_per_epoch
            description["batches_per_epoch"] = rows_per_epoch / self.batch_size
        return description


def _row_lengths(
    lengths: Mapping[str, int] | None, layouts: Sequence[streams.Layout]
) -> tuple[int, ...]:
    names = [layout.length for layout in layouts]
    lengths = dict.fromkeys(names, 512) if lengths is None else dict(lengths)
    if set(lengths) != set(names):
        raise ValueError(
            f"feature_lengths has {' and '.join(lengths) or 'nothing'}; it must have "
            f"{' and '.join(names)} for this task."
        )
    return tuple(lengths[name] for name in names)
