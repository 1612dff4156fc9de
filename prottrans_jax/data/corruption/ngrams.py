"""Picks runs of residues: ALBERT's n-gram masking.

A run has length n, 1 <= n <= 3, with probability proportional to 1 / n (Lan et al.
2020, section 4.1). Here a run begins at each uncovered residue with such a probability
that the expected share of residues is covered; ALBERT's script draws places until
exactly that share is covered.
"""

import fractions
import itertools

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits


def length_limits(max_length: int) -> np.ndarray:
    """Upper limits of the bits for lengths 1 .. max_length - 1, [max_length - 1]."""
    weights = (fractions.Fraction(1, n) for n in range(1, max_length + 1))
    sums = list(itertools.accumulate(weights))
    return np.array([int(s / sums[-1] * 2**64) for s in sums[:-1]], np.uint64)


def mean_length(max_length: int) -> float:
    """Mean of n with probability proportional to 1 / n, 1 <= n <= max_length."""
    return max_length / sum(1.0 / n for n in range(1, max_length + 1))


def lengths_from(
    bits: jaxtyping.UInt64[np.ndarray, " count"], max_length: int
) -> jaxtyping.Int64[np.ndarray, " count"]:
    """n with probability proportional to 1 / n for each of `bits`."""
    return 1 + np.searchsorted(length_limits(max_length), bits, side="right")


def pick(
    bits: jaxtyping.UInt64[np.ndarray, " residues"],
    size_bits: jaxtyping.UInt64[np.ndarray, " residues"],
    parts: jaxtyping.Int64[np.ndarray, " parts"],
    share: float,
    max_length: int,
) -> jaxtyping.Bool[np.ndarray, " residues"]:
    """Marks the residues that lie in a run. A run does not cross the end of a part.

    Args:
      bits: random bits that decide whether a run may begin at each residue.
      size_bits: random bits that decide the length of this run.
      parts: number of residues of each part.
      share: expected share of covered residues, except near the ends of parts.
      max_length: length of the longest run.
    """
    # A free residue begins a run with probability p, so that
    # share = p mean / (p mean + 1 - p).
    mean = mean_length(max_length)
    begin_probability = share / (share + mean * (1.0 - share))
    candidates = bits < random_bits.threshold(begin_probability)
    sizes = lengths_from(size_bits, max_length)
    ends = np.repeat(np.cumsum(parts), parts)
    last = np.minimum(np.arange(len(bits)) + sizes, ends)  # excluded
    sizes = last - np.arange(len(bits))
    # A run begins at a candidate that no earlier run covers. Each iteration decides all
    # candidates at once; decisions become final from left to right.
    begins = candidates
    while True:
        covered = np.zeros(len(bits), bool)
        for back in range(1, max_length):
            covered[back:] |= (begins & (sizes > back))[:-back]
        uncovered = candidates & ~covered
        if (uncovered == begins).all():
            break
        begins = uncovered
    return begins | covered
