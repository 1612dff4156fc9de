"""Which proteins go through the model together, padded or several in a row."""

import bisect
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools

from jaxtyping import Float, Int
import numpy as np

_GRAIN = 8
# Each is a program of some 8 MB; of a whole proteome's tokens 1.4 % are then padding.
_MAX_BUCKETS = 96
# Lengths of packed rows between two powers of two. Their padding costs what is neither
# product nor attention: a row of a fifth more takes 1 % more of the time.
_LENGTHS_PER_OCTAVE, _SHORTEST_ROW = 8, 64
# Of shared rows: tokens up to which rows longer than the longest sequence are tried;
# numbers of lengths that are tried, on so many of the sequences; the share of padding
# that a choice is to keep, and how much of the time that may take. Costs are estimates
# within a tenth.
_LONG_ROW, _TRIED_SEQUENCES = 1024, 4096
_TRIED_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96)
_PADDING, _PADDING_WORTH = 0.028, 1.1


def round_up(lengths: np.typing.ArrayLike) -> np.ndarray:
    """Lengths rounded up to a multiple of 8, above 1,024 to 1/64 to 1/128 of them."""
    lengths = np.maximum(np.asarray(lengths, np.int64), 1)
    # frexp: exact where log2 may fall on either side of a power of two.
    octave = np.frexp(lengths.astype(np.float64))[1] - 1
    grain = np.maximum(_GRAIN, 1 << np.maximum(octave - 7, 0).astype(np.int64))
    return -(-lengths // grain) * grain


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences that share one call of the model, in rows of one length.

    Attributes:
      members: Their numbers, row by row, and in a row by position.
      rows: Rows of the call; the last ones may be empty.
      length: Tokens of every row.
      starts: Row and first position of each member where a row may hold several; None:
        each has a row of its own.
    """

    members: tuple[int, ...]
    rows: int
    length: int
    starts: tuple[tuple[int, int], ...] | None = None

    @property
    def tokens(self) -> int:
        """How many go through products."""
        return self.rows * self.length

    def places(self) -> list[tuple[int, int]]:
        """Row and first position of each member."""
        if self.starts is None:
            return [(row, 0) for row in range(len(self.members))]
        return list(self.starts)

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same sequences in two batches of half the rows, or in two shorter rows.

        The second has no members where the first has room for all.
        """
        places = self.places()
        if self.rows > 1:
            rows = (self.rows + 1) // 2
            cut = bisect.bisect_left(places, (rows, 0))
            first = second = rows, self.length
            moved = [(row - rows, start) for row, start in places[cut:]]
        else:
            cut = bisect.bisect_left(places, (0, (self.length + 1) // 2))
            cut = min(max(cut, 1), len(places) - 1)
            at = places[cut][1]
            first, second = (
                (1, min(int(round_up(tokens)), self.length))
                for tokens in (at, self.length - at)
            )
            moved = [(row, start - at) for row, start in places[cut:]]
        shared = self.starts is not None
        return (
            Batch(self.members[:cut], *first, tuple(places[:cut]) if shared else None),
            Batch(self.members[cut:], *second, tuple(moved) if shared else None),
        )


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences that share one call of the model, one after another in one row.

    Attributes:
      members: Their numbers.
      lengths: Tokens of each.
      max_tokens: Tokens of a full row.
      max_length: Tokens of the longest row that the model takes, or None.
    """

    members: tuple[int, ...]
    lengths: tuple[int, ...]
    max_tokens: int
    max_length: int | None = None

    @property
    def tokens(self) -> int:
        """How many go through products: padding, which comes last, does not."""
        return sum(self.lengths)

    @property
    def rows(self) -> int:
        """Rows of the call."""
        return 1

    @property
    def length(self) -> int:
        """Tokens of the row, with padding: few different ones, each is a program."""
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


class _Waiting:
    """Sequences by length, the first of one length first: always in the same order."""

    def __init__(self, lengths: Sequence[int] | Int[np.ndarray, " sequences"]):
        self._numbers: dict[int, list[int]] = {}
        for number in reversed(range(len(lengths))):
            self._numbers.setdefault(int(lengths[number]), []).append(number)
        self._sizes = sorted(self._numbers)

    @property
    def longest(self) -> int:
        """Tokens of the longest; 0: there are none."""
        return self._sizes[-1] if self._sizes else 0

    def fill(self, room: int, most: int | None = None) -> Iterator[tuple[int, int]]:
        """Numbers and lengths of the longest that fit, one after another, taken out."""
        count = 0
        while most is None or count < most:
            at = bisect.bisect_right(self._sizes, room) - 1
            if at < 0:
                return
            size = self._sizes[at]
            numbers = self._numbers[size]
            number = numbers.pop()
            if not numbers:
                del self._sizes[at]
            yield number, size
            room -= size
            count += 1


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
    waiting = _Waiting(lengths)
    while waiting.longest:
        room = max(max_tokens, waiting.longest)
        members, taken = zip(*waiting.fill(room, max_members), strict=True)
        yield Packed(members, taken, max_tokens, max_length)


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
    choices = _choices(sizes, counts, sizes.astype(np.float64))
    if not choices:
        return np.zeros(0, np.int64)
    totals = [cost + compile_cost_tokens * len(bounds) for bounds, cost in choices]
    return choices[int(np.argmin(totals))][0]


def _choices(
    sizes: Int[np.ndarray, " sizes"],
    counts: Int[np.ndarray, " sizes"],
    row_costs: Float[np.ndarray, " sizes"],
) -> list[tuple[Int[np.ndarray, " buckets"], float]]:
    """The cheapest 1, 2, 3, ... of the sizes to pad to, and what the rows cost."""
    # best[i]: least cost of the i shortest sizes in so many buckets.
    number = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(sizes.size + 1, np.inf)
    best[0] = 0.0
    steps: list[Int[np.ndarray, " sizes"]] = []
    choices = []
    # [first, last]: cost of one bucket for the sizes first .. last - 1.
    cost = row_costs[None, :] * (number[None, 1:] - number[:-1, None])
    cost[np.tril_indices(sizes.size, -1)] = np.inf
    for _ in range(min(_MAX_BUCKETS, sizes.size)):
        total = best[:-1, None] + cost
        step = total.argmin(axis=0)
        best = np.concatenate([[np.inf], total[step, np.arange(sizes.size)]])
        steps.append(step)
        bounds = []
        last = sizes.size - 1
        for step in reversed(steps):
            bounds.append(int(sizes[last]))
            last = int(step[last]) - 1
            if last < 0:
                break
        choices.append((np.array(bounds[::-1], np.int64), float(best[-1])))
    return choices


def choose_shared(
    lengths: Int[np.ndarray, " sequences"],
    cost: Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]],
    compile_cost_tokens: float,
    max_tokens: int,
    max_length: int | None = None,
) -> Int[np.ndarray, " buckets"]:
    """Lengths of rows that sequences share: of those tried, those that cost least.

    Few lengths are few programs, and rows so long that others fill them; but attention
    computes, and masks, the scores between the sequences of a row. Each choice is
    planned to the end, large jobs with a part of the sequences. One with more padding
    than `_PADDING` is taken only where all others take a tenth more time.

    Args:
      lengths: Tokens of every sequence, special ones included.
      cost: What a row of so many tokens costs, in tokens of a short one.
      compile_cost_tokens: How many tokens could be computed while one program is
        compiled.
      max_tokens: Tokens of a batch.
      max_length: Tokens that the model has positions for.
    """
    lengths = np.sort(np.asarray(lengths, np.int64))
    if lengths.size == 0:
        return np.zeros(0, np.int64)
    sizes, counts = np.unique(round_up(lengths), return_counts=True)
    choices = _choices(sizes, counts, cost(sizes))
    tried = [choices[n - 1][0] for n in _TRIED_NUMBERS if n <= len(choices)]
    total, longer = int(lengths.sum()), 2 * int(lengths[-1])
    most = min(_LONG_ROW, max_tokens, max_length or _LONG_ROW)
    while longer < min(total, most):
        tried.append(round_up([longer]))
        longer *= 2
    if lengths.size > 1 and total <= most:
        tried.append(round_up([total]))
    some = lengths
    if lengths.size > _TRIED_SEQUENCES:
        at = np.linspace(0, lengths.size - 1, _TRIED_SEQUENCES)
        some = lengths[np.round(at).astype(np.int64)]
    share = some.size / lengths.size
    costs, paddings = [], []
    for bounds in tried:
        batches = list(
            plan(
                some,
                bounds,
                max_tokens,
                max_length=max_length,
                compile_cost_tokens=compile_cost_tokens,
                shares_rows=True,
            )
        )
        shapes = [(batch.rows, batch.length) for batch in batches]
        rows, length = np.array(shapes, np.int64).T
        costs.append(
            float(rows @ cost(length)) / share + compile_cost_tokens * len(set(shapes))
        )
        paddings.append(1.0 - float(some.sum() / (rows @ length)))
    limit = min(costs) * _PADDING_WORTH
    best = min(
        range(len(tried)),
        key=lambda i: (paddings[i] > _PADDING or costs[i] > limit, costs[i]),
    )
    return tried[best]


def plan(
    lengths: Sequence[int] | Int[np.ndarray, " sequences"],
    buckets: Int[np.ndarray, " buckets"],
    max_tokens: int,
    max_rows: int | None = None,
    max_length: int | None = None,
    compile_cost_tokens: float = 0.0,
    seen: set[tuple[int, int]] | None = None,
    more_to_come: bool = False,
    shares_rows: bool = False,
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
      shares_rows: Whether what is left of a row is filled with the longest that fit.
    """
    waiting = _Waiting(lengths)
    seen = set() if seen is None else seen
    rows_of: dict[int, list[int]] = {}
    for rows, length in sorted(seen):
        rows_of.setdefault(length, []).append(rows)
    while longest := waiting.longest:
        at = int(np.searchsorted(buckets, longest))
        length = int(buckets[at] if at < len(buckets) else round_up(longest))
        if max_length is not None:
            length = min(length, max_length)
        full = max(1, max_tokens // max(length, 1))
        if max_rows is not None:
            full = min(full, max_rows)
        members, starts = [], []
        used = 0
        while used < full and waiting.longest:
            start = 0
            for number, size in waiting.fill(length, None if shares_rows else 1):
                members.append(number)
                starts.append((used, start))
                start += size
            used += 1
        known = rows_of.setdefault(length, [])
        enough = bisect.bisect_left(known, used)
        rows = full if more_to_come else used
        if enough < len(known):
            rows = known[enough]
        if (rows - used) * length > compile_cost_tokens:
            rows = used
        if (rows, length) not in seen:
            seen.add((rows, length))
            bisect.insort(known, rows)
        yield Batch(
            tuple(members), rows, length, tuple(starts) if shares_rows else None
        )
