"""Which proteins go through the model together, padded or packed into one row."""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses
import itertools

from jaxtyping import Int
import numpy as np

_GRAIN = 8
# Each is a program of some 8 MB; of a whole proteome's tokens 1.4 % are then padding.
_MAX_BUCKETS = 96
# Lengths of packed rows between two powers of two. Their padding costs what is neither
# product nor attention: a row of a fifth more takes 1 % more of the time.
_LENGTHS_PER_OCTAVE, _SHORTEST_ROW = 8, 64
# Tokens of a row up to which attention over all of it, most of it masked, costs less
# than what is padded otherwise, and than a second program.
WHOLE_ROW = 1024


def round_up(lengths: np.typing.ArrayLike) -> np.ndarray:
    """Lengths rounded up to a multiple of 8, above 1,024 to 1/64 to 1/128 of them."""
    lengths = np.maximum(np.asarray(lengths, np.int64), 1)
    # frexp: exact where log2 may fall on either side of a power of two.
    octave = np.frexp(lengths.astype(np.float64))[1] - 1
    grain = np.maximum(_GRAIN, 1 << np.maximum(octave - 7, 0).astype(np.int64))
    return -(-lengths // grain) * grain


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences that share one call of the model, each in a row of its own.

    Attributes:
      members: Their numbers, at most `rows` of them.
      rows: Rows of the call; those beyond the members are empty.
      length: Tokens of every row.
    """

    members: tuple[int, ...]
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """How many go through products."""
        return self.rows * self.length

    def places(self) -> list[tuple[int, int]]:
        """Row and first position of each member."""
        return [(row, 0) for row in range(len(self.members))]

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same sequences in two batches of half the rows."""
        rows = (self.rows + 1) // 2
        return (
            Batch(self.members[:rows], rows, self.length),
            Batch(self.members[rows:], rows, self.length),
        )


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences that share one call of the model, one after another in one row.

    Attributes:
      members: Their numbers.
      lengths: Tokens of each.
      max_tokens: Tokens of a full row.
      max_length: Tokens of the longest row that the model takes, or None.
      skips_padding: Whether padding, which comes last, does not go through products.
    """

    members: tuple[int, ...]
    lengths: tuple[int, ...]
    max_tokens: int
    max_length: int | None = None
    skips_padding: bool = True

    @property
    def tokens(self) -> int:
        """How many go through products."""
        return sum(self.lengths) if self.skips_padding else self.length

    @property
    def rows(self) -> int:
        """Rows of the call."""
        return 1

    @property
    def length(self) -> int:
        """Tokens of the row, with padding: few different ones, each is a program."""
        if not self.skips_padding:
            length = int(round_up(sum(self.lengths)))
            return length if self.max_length is None else min(length, self.max_length)
        tokens = max(self.tokens, _SHORTEST_ROW)
        grain = (1 << (tokens - 1).bit_length()) // (2 * _LENGTHS_PER_OCTAVE)
        length = -(-tokens // grain) * grain
        if length > self.max_tokens:
            length = max(self.max_tokens, int(round_up(self.tokens)))
        return length if self.max_length is None else min(length, self.max_length)

    def places(self) -> list[tuple[int, int]]:
        """Row and first position of each member."""
        return [(0, end - n) for end, n in zip(self._ends(), self.lengths, strict=True)]

    def halves(self) -> tuple["Packed", "Packed"]:
        """The same sequences in two rows, of about half the tokens."""
        cut = bisect.bisect_left(self._ends(), sum(self.lengths) / 2)
        cut = min(max(cut, 1), len(self.members) - 1)
        return (
            dataclasses.replace(
                self, members=self.members[:cut], lengths=self.lengths[:cut]
            ),
            dataclasses.replace(
                self, members=self.members[cut:], lengths=self.lengths[cut:]
            ),
        )

    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.lengths))


def pack(
    lengths: Sequence[int] | Int[np.ndarray, " sequences"],
    max_tokens: int,
    max_members: int | None = None,
    max_length: int | None = None,
) -> Iterator[Packed]:
    """Rows of sequences: the longest of those left, then the longest that still fit.

    Args:
      lengths: Tokens of every sequence.
      max_tokens: Tokens of a row; a longer sequence goes alone.
      max_members: Limit of the sequences of a row.
      max_length: Tokens of the longest row that the model takes: it has no more
        positions, though they count from 0 in each sequence.
    """
    if max_length is not None:
        max_tokens = min(max_tokens, max_length)
    # By length, the first last: the same input always gives the same rows.
    waiting: dict[int, list[int]] = {}
    for number in reversed(range(len(lengths))):
        waiting.setdefault(int(lengths[number]), []).append(number)
    sizes = sorted(waiting)
    while sizes:
        room = max(max_tokens, sizes[-1])
        members: list[int] = []
        taken: list[int] = []
        while max_members is None or len(members) < max_members:
            at = bisect.bisect_right(sizes, room) - 1
            if at < 0:
                break
            size = sizes[at]
            members.append(waiting[size].pop())
            taken.append(size)
            room -= size
            if not waiting[size]:
                del sizes[at]
        yield Packed(tuple(members), tuple(taken), max_tokens, max_length)


def choose_buckets(
    lengths: Int[np.ndarray, " sequences"], compile_cost_tokens: float = 0.0
) -> Int[np.ndarray, " buckets"]:
    """Lengths to pad to: those that together cost least.

    The cost is the number of tokens computed, padding included, plus
    `compile_cost_tokens` for each length, since a new shape is a new program. Optimal
    among the lengths that `round_up` gives, by dynamic programming.

    Args:
      lengths: Tokens of every sequence, special ones included.
      compile_cost_tokens: How many tokens could be computed while one program is
        compiled.

    Returns:
      Lengths in rising order, the last not shorter than any sequence.
    """
    sizes, counts = np.unique(round_up(lengths), return_counts=True)
    if sizes.size == 0:
        return np.zeros(0, np.int64)
    # best[k, i]: least cost of the i shortest sizes in k buckets.
    number = np.concatenate([[0], np.cumsum(counts)])
    most = min(_MAX_BUCKETS, sizes.size)
    best = np.full(sizes.size + 1, np.inf)
    best[0] = 0.0
    choices, totals = [], []
    # [first, last]: cost of one bucket for the sizes first .. last - 1.
    cost = sizes[None, :] * (number[None, 1:] - number[:-1, None]).astype(np.float64)
    cost[np.tril_indices(sizes.size, -1)] = np.inf
    for _ in range(most):
        total = best[:-1, None] + cost
        choice = total.argmin(axis=0)
        best = np.concatenate([[np.inf], total[choice, np.arange(sizes.size)]])
        choices.append(choice)
        totals.append(best[-1])
    cheapest = int(np.argmin(np.array(totals) + compile_cost_tokens * np.arange(most)))
    bounds = []
    last = sizes.size - 1
    for choice in reversed(choices[: cheapest + 1]):
        bounds.append(int(sizes[last]))
        last = int(choice[last]) - 1
        if last < 0:
            break
    return np.array(bounds[::-1], np.int64)


def plan(
    lengths: Sequence[int] | Int[np.ndarray, " sequences"],
    buckets: Int[np.ndarray, " buckets"],
    max_tokens: int,
    max_rows: int | None = None,
    max_length: int | None = None,
    compile_cost_tokens: float = 0.0,
    seen: set[tuple[int, int]] | None = None,
    more_to_come: bool = False,
) -> Iterator[Batch]:
    """Batches of sequences sorted by length, the longest first.

    The longest come first so that a batch too large for the device shows at once.

    Args:
      lengths: Tokens of every sequence.
      buckets: Lengths to pad to, rising; a longer sequence gets its own, rounded up.
      max_tokens: Padded tokens of a batch; a longer sequence goes alone.
      max_rows: Limit of the rows of a batch.
      max_length: Tokens that the model has positions for.
      compile_cost_tokens: As in `choose_buckets`. The last batch keeps empty rows if
        they cost less than another program.
      seen: (rows, length) for which there are programs; new ones are added. Of a job
        in many windows each would else need programs of its own for its last batches.
      more_to_come: Whether these are a part of the job only. Full batches of every
        bucket will then be met, so that one with fewer rows is a program too many.
    """
    lengths = np.asarray(lengths, np.int64)
    # Ties by number: the same input always gives the same batches.
    order = np.lexsort((np.arange(lengths.size), -lengths))
    start = 0
    seen = set() if seen is None else seen
    rows_of: dict[int, list[int]] = {}
    for rows, length in sorted(seen):
        rows_of.setdefault(length, []).append(rows)
    while start < order.size:
        longest = int(lengths[order[start]])
        at = int(np.searchsorted(buckets, longest))
        length = int(buckets[at] if at < len(buckets) else round_up(longest))
        if max_length is not None:
            length = min(length, max_length)
        full = max(1, max_tokens // max(length, 1))
        if max_rows is not None:
            full = min(full, max_rows)
        members = tuple(int(i) for i in order[start : start + full])
        known = rows_of.setdefault(length, [])
        enough = bisect.bisect_left(known, len(members))
        rows = full if more_to_come else len(members)
        if enough < len(known):
            rows = known[enough]
        if (rows - len(members)) * length > compile_cost_tokens:
            rows = len(members)
        if (rows, length) not in seen:
            seen.add((rows, length))
            bisect.insort(known, rows)
        yield Batch(members, rows, length)
        start += len(members)
