"""Plans batches: one padded protein per row, or several proteins packed into a row."""

import bisect
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

_GRAIN = 8
# Each bucket is a compiled program of some 8 MB. With 96 buckets, 1.4 % of the tokens
# of a whole proteome are padding.
_MAX_BUCKETS = 96
# Number of lengths of packed rows between two powers of two. Padding of packed rows
# slows only operations other than matrix products and attention: a row that is 20 %
# longer takes 1 % more time.
_LENGTHS_PER_OCTAVE, _SHORTEST_ROW = 8, 64
# Shared rows. Rows longer than the longest sequence are tried up to `_LONG_ROW` tokens;
# candidates are planned with at most `_TRIED_SEQUENCES` sequences.
_LONG_ROW, _TRIED_SEQUENCES = 1024, 4096
# Numbers of buckets that are tried.
_TRIED_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96)
# Limit of the share of padding, and the factor in cost that may be paid for staying
# below it. Costs are estimates, correct within 10 %.
_PADDING, _PADDING_WORTH = 0.028, 1.1


def round_up(lengths: np.typing.ArrayLike) -> np.ndarray:
    """Rounds lengths up to a multiple of 8; from 2,048 on by less than 1/128."""
    lengths = np.maximum(np.asarray(lengths, np.int64), 1)
    # frexp is exact; log2 may round to either side of a power of two.
    octave = np.frexp(lengths.astype(np.float64))[1] - 1
    grain = np.maximum(_GRAIN, 1 << np.maximum(octave - 7, 0).astype(np.int64))
    return -(-lengths // grain) * grain


class Span(NamedTuple):
    """Where the tokens of a sequence are.

    Attributes:
      row: Row.
      start: Position of the first token.
      stop: Position after the last one.
    """

    row: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences that share one call of the model, in rows of one length.

    Attributes:
      members: Indices of the sequences, ordered by row, then by position in the row.
      spans: Tokens of each member.
      rows: Rows of the call; the last ones may be empty.
      length: Tokens of every row.
      skips_padding: Whether the device computes nothing at the end of the last row.
    """

    members: tuple[int, ...]
    spans: tuple[Span, ...]
    rows: int
    length: int
    skips_padding: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        if self.skips_padding:
            return (self.rows - 1) * self.length + self.spans[-1].stop
        return self.rows * self.length

    def halves(self, row_length: Callable[[int], int]) -> tuple["Batch", "Batch"]:
        """Splits the batch into two of half the rows, or one row into two shorter rows.

        The second half has no members if all of them fit into the first.

        Args:
          row_length: Length of a row for a number of tokens.
        """
        if self.rows > 1:
            rows = (self.rows + 1) // 2
            cut = bisect.bisect_left(self.spans, (rows, 0))
            first = second = rows, self.length
            moved = [span._replace(row=span.row - rows) for span in self.spans[cut:]]
        else:
            stop = self.spans[-1].stop
            cut = bisect.bisect_left(self.spans, (0, (stop + 1) // 2))
            cut = min(max(cut, 1), len(self.spans) - 1)
            at = self.spans[cut].start
            first, second = (
                (1, min(row_length(tokens), self.length)) for tokens in (at, stop - at)
            )
            moved = [
                Span(0, span.start - at, span.stop - at) for span in self.spans[cut:]
            ]
        return (
            Batch(self.members[:cut], self.spans[:cut], *first, self.skips_padding),
            Batch(self.members[cut:], tuple(moved), *second, self.skips_padding),
        )


def one_each(
    members: Sequence[int],
    lengths: Sequence[int],
    *,
    rows: int | None = None,
    length: int,
) -> Batch:
    """A batch in which each sequence has its own row.

    Args:
      members: Indices of the sequences.
      lengths: Tokens of each.
      rows: Rows of the call; None: one for each sequence.
      length: Tokens of every row.
    """
    spans = tuple(Span(row, 0, stop) for row, stop in enumerate(lengths))
    return Batch(tuple(members), spans, len(spans) if rows is None else rows, length)


class _Waiting:
    """Sequences not batched yet, by length, then in input order."""

    def __init__(self, lengths: Sequence[int] | Int[np.ndarray, " sequences"]):
        self._numbers: dict[int, list[int]] = {}
        for number in reversed(range(len(lengths))):
            self._numbers.setdefault(int(lengths[number]), []).append(number)
        self._sizes = sorted(self._numbers)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 if none is left."""
        return self._sizes[-1] if self._sizes else 0

    def fill(self, room: int, most: int | None = None) -> Iterator[tuple[int, int]]:
        """Removes and yields (index, length) of the longest that fits, repeatedly."""
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


def packed_length(tokens: int, max_tokens: int, max_length: int | None = None) -> int:
    """Length of a packed row. Few values occur: each is a compiled program.

    Args:
      tokens: Tokens of the row.
      max_tokens: Tokens of a full row.
      max_length: Longest row that the model accepts, in tokens, or None.
    """
    wide = max(tokens, _SHORTEST_ROW)
    grain = (1 << (wide - 1).bit_length()) // (2 * _LENGTHS_PER_OCTAVE)
    length = -(-wide // grain) * grain
    if length > max_tokens:
        length = max(max_tokens, int(round_up(tokens)))
    return length if max_length is None else min(length, max_length)


def pack(
    lengths: Sequence[int] | Int[np.ndarray, " sequences"],
    max_tokens: int,
    max_members: int | None = None,
    max_length: int | None = None,
) -> Iterator[Batch]:
    """Packs sequences into rows: the longest one left, then the longest that still fit.

    Args:
      lengths: Tokens of every sequence.
      max_tokens: Tokens of a row; a longer sequence has a row of its own.
      max_members: Most sequences of a row.
      max_length: Longest row that the model accepts, in tokens: its number of
        positions, although positions restart at 0 in each sequence.
    """
    if max_length is not None:
        max_tokens = min(max_tokens, max_length)
    waiting = _Waiting(lengths)
    while waiting.longest:
        room = max(max_tokens, waiting.longest)
        members, taken = zip(*waiting.fill(room, max_members), strict=True)
        stops = list(itertools.accumulate(taken))
        length = packed_length(stops[-1], max_tokens, max_length)
        starts = (0, *stops)
        spans = tuple(Span(0, *ends) for ends in zip(starts, stops, strict=False))
        yield Batch(members, spans, 1, length, skips_padding=True)


def choose_buckets(
    lengths: Int[np.ndarray, " sequences"], compile_cost_tokens: float = 0.0
) -> Int[np.ndarray, " buckets"]:
    """Lengths to pad to, chosen to minimise the total cost.

    The cost is the number of tokens computed, padding included, plus
    `compile_cost_tokens` for each length, since each shape is compiled. Dynamic
    programming finds the optimum among the lengths that `round_up` returns.

    Args:
      lengths: Tokens of every sequence, special ones included.
      compile_cost_tokens: How many tokens could be computed while one program is
        compiled.

    Returns:
      Lengths in ascending order; the last one is as long as the longest sequence.
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
    """The cheapest sizes to pad to with 1, 2, 3, ... buckets, and their cost."""
    # best[i]: least cost of the i shortest sizes with the current number of buckets.
    number = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(sizes.size + 1, np.inf)
    best[0] = 0.0
    steps: list[Int[np.ndarray, " sizes"]] = []
    choices = []
    # [first, last]: cost of one bucket for the sizes first to last, both included.
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
    """Lengths of shared rows: the cheapest of several candidates.

    With few lengths there are few programs to compile, and long rows have room for
    short sequences. But attention also computes, and masks, the scores between
    different sequences of a row. The cost of each candidate is that of the complete
    plan; large jobs are planned with a sample of the sequences. A candidate with more
    padding than `_PADDING` is chosen only if all others cost over 10 % more.

    Args:
      lengths: Tokens of every sequence, special ones included.
      cost: Cost of a row by its number of tokens, in tokens of a short row.
      compile_cost_tokens: How many tokens could be computed while one program is
        compiled.
      max_tokens: Most tokens of a batch.
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

    The longest come first, so that a batch too large for the device fails at once.

    Args:
      lengths: Tokens of every sequence.
      buckets: Lengths to pad to, ascending. A longer sequence is padded to its own
        length, rounded up.
      max_tokens: Most tokens of a batch, padding included; a longer sequence has a
        batch of its own.
      max_rows: Most rows of a batch.
      max_length: Tokens that the model has positions for.
      compile_cost_tokens: As in `choose_buckets`. The last batch keeps empty rows if
        they cost less than compiling another shape.
      seen: (rows, length) of compiled programs; new shapes are added. Shared by the
        windows of a job, so that the last batches of a window reuse shapes.
      more_to_come: Whether these sequences are only a part of the job. Later parts will
        then need full batches of every bucket, so none gets fewer rows.
      shares_rows: Whether the rest of a row is filled with the longest sequences that
        fit.
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
        members, spans = [], []
        used = 0
        while used < full and waiting.longest:
            start = 0
            for number, size in waiting.fill(length, None if shares_rows else 1):
                members.append(number)
                spans.append(Span(used, start, start + size))
                start += size
            used += 1
        row_counts = rows_of.setdefault(length, [])
        enough = bisect.bisect_left(row_counts, used)
        rows = full if more_to_come else used
        if enough < len(row_counts):
            rows = row_counts[enough]
        if (rows - used) * length > compile_cost_tokens:
            rows = used
        if (rows, length) not in seen:
            seen.add((rows, length))
            bisect.insort(row_counts, rows)
        yield Batch(tuple(members), tuple(spans), rows, length)
