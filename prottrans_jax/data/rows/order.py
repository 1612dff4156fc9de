"""The order of records: epochs of one split, or a mixture of several.

One unbounded counter numbers the records of a run. Packing works on fixed blocks of
this counter.
"""

import dataclasses
import fractions

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.rows import permutation

# Random streams of the key of the seed.
SHUFFLE, CROP, CORRUPT, ROWS = range(4)

_MAX_DENOMINATOR = 1 << 20


@dataclasses.dataclass(frozen=True)
class RecordBlock:
    """Consecutive records of a run, each [records] int64.

    Attributes:
      component: index of the task in a mixture; else 0.
      record: number of the record in its split.
      epoch: number of completed passes over that split before.
    """

    component: jaxtyping.Int64[np.ndarray, " records"]
    record: jaxtyping.Int64[np.ndarray, " records"]
    epoch: jaxtyping.Int64[np.ndarray, " records"]


@dataclasses.dataclass(frozen=True)
class RecordOrder:
    """The order of records of a run; a pure function of its fields.

    One split: blocks do not cross the end of an epoch, so each epoch contains every
    record once. Several: a schedule of the counter keeps the rate of each component to
    within one record at every moment; each component has epochs of its own.

    Attributes:
      sizes: records of each split.
      rates: share of each split in the records, in any unit.
      seed: of the run.
      shuffle: permute the records anew in each epoch.
      block_records: records of a block.
    """

    sizes: tuple[int, ...]
    rates: tuple[fractions.Fraction, ...]
    seed: int
    shuffle: bool
    block_records: int

    @property
    def blocks_per_epoch(self) -> int | None:
        """Blocks of an epoch; None for mixtures, which have no epochs."""
        if len(self.sizes) > 1:
            return None
        return -(-self.sizes[0] // self.block_records)

    def block(self, number: int) -> RecordBlock:
        """Records of block `number`, counted from the start of the run."""
        per_epoch = self.blocks_per_epoch
        if per_epoch is None:
            first = number * self.block_records
            return self.at(np.arange(first, first + self.block_records))
        epoch, first = number // per_epoch, number % per_epoch * self.block_records
        last = min(first + self.block_records, self.sizes[0])
        return self.at(np.arange(first, last) + epoch * self.sizes[0])

    def at(self, counter: jaxtyping.Int64[np.ndarray, " records"]) -> RecordBlock:
        """Records by their number from the start of the run."""
        component, ordinal = np.zeros(len(counter), np.int64), counter
        if len(self.sizes) > 1:
            component, ordinal = schedule(counter, self.rates)
        record = np.empty(len(ordinal), np.int64)
        sizes = np.asarray(self.sizes, np.int64)
        epochs = ordinal // sizes[component]
        for c, size in enumerate(self.sizes):
            selected = component == c
            position = ordinal[selected] % size
            if self.shuffle:
                key = random_bits.key(self.seed, SHUFFLE, c)
                keys = random_bits.fold(key, epochs[selected])
                position = permutation.permute(position, size, keys)
            record[selected] = position
        return RecordBlock(component, record, epochs)


def schedule(
    counter: jaxtyping.Int64[np.ndarray, " count"],
    rates: tuple[fractions.Fraction, ...],
) -> tuple[
    jaxtyping.Int64[np.ndarray, " count"], jaxtyping.Int64[np.ndarray, " count"]
]:
    """Assigns the values of a counter to components, as evenly as possible.

    The first component, with share p, gets floor(p n + 1/2) of the first n values. The
    others divide the remaining values in the same way.

    Returns:
      The component, and the number of values that it got before.
    """
    component = np.zeros(len(counter), np.int64)
    ordinal = np.zeros(len(counter), np.int64)
    waiting = np.arange(len(counter))
    left = np.asarray(counter, np.int64)
    for c in range(len(rates)):
        share = fractions.Fraction(rates[c]) / sum(map(fractions.Fraction, rates[c:]))
        share = share.limit_denominator(_MAX_DENOMINATOR)
        a, b = share.numerator, share.denominator
        turns = (left * a + b // 2) // b
        is_turn = ((left + 1) * a + b // 2) // b > turns
        component[waiting[is_turn]] = c
        ordinal[waiting[is_turn]] = turns[is_turn]
        waiting, left = waiting[~is_turn], (left - turns)[~is_turn]
    return component, ordinal
