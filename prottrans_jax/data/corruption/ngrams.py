"""Runs of residues that are picked together: ALBERT's n-gram masking.

Lan et al. 2020, section 4.1: the length of a run is n with probability proportional to
1 / n, n from 1 to 3. Here a run begins at each residue that is not inside one with a
probability such that the wanted share of residues is covered; ALBERT's script draws
places until exactly that share is.
"""

import fractions
import itertools

import jaxtyping
import numpy as np

from prottrans_jax.data.rows import random_bits


def length_limits(max_length: int) -> np.ndarray:
    """[max_length - 1] uint64: bits below the i-th, not below the one before: i + 1."""
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
    """Which residues lie in a run. Runs end with the part that they are in.

    Args:
      bits: whether a run would begin at each residue, were it free.
      size_bits: how long that run would be.
      parts: residues of each part, end to end.
      share: of the residues that runs cover, but for the ends of parts.
      max_length: longest run.
    """
    # Of a residue that is free and the run it may begin, share * cycle is covered:
    # share = p mean / (p mean + 1 - p).
    mean = mean_length(max_length)
    begins_here = share / (share + mean * (1.0 - share))
    wanted = bits < random_bits.threshold(begins_here)
    sizes = lengths_from(size_bits, max_length)
    ends = np.repeat(np.cumsum(parts), parts)
    last = np.minimum(np.arange(len(bits)) + sizes, ends)  # excluded
    sizes = last - np.arange(len(bits))
    # A run begins where it is wanted and no run from before reaches: settled from left
    # to right, each turn all at once.
    begins = wanted
    while True:
        covered = np.zeros(len(bits), bool)
        for back in range(1, max_length):
            covered[back:] |= (begins & (sizes > back))[:-back]
        settled = wanted & ~covered
        if (settled == begins).all():
            break
        begins = settled
    return begins | covered
