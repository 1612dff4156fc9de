"""Segment overlap of secondary structures, SOV'99 (Zemla et al. 1999).

  SOV = 1/N sum over pairs (s1, s2) of (minov + delta) / maxov * len(s1)

s1 is an observed segment, s2 a predicted one of the same class that overlaps it; minov
and maxov are the lengths of their intersection and union, and delta = min(maxov -
minov, minov, len(s1) // 2, len(s2) // 2). N is the sum of len(s1) over the pairs, and
over the observed segments without a pair. Here 1 is best, in the paper 100.

Residues that do not count are in no segment, and separate those beside them.
"""

from typing import NamedTuple

from jaxtyping import Float64, Int64
import numpy as np


class Overlap(NamedTuple):
    """Sums of each protein and class of the observed segment.

    Attributes:
      score: Sum of (minov + delta) / maxov * len(s1).
      size: N.
    """

    score: Float64[np.ndarray, "proteins classes"]
    size: Float64[np.ndarray, "proteins classes"]


def overlap(
    labels: Int64[np.ndarray, " items"],
    predictions: Int64[np.ndarray, " items"],
    protein: Int64[np.ndarray, " items"],
    position: Int64[np.ndarray, " items"],
    num_proteins: int,
    num_classes: int,
) -> Overlap:
    """Both sums of SOV'99; arguments are the attributes of `outcomes.Outcomes`."""
    breaks = np.ones(len(labels), bool)
    breaks[1:] = (np.diff(protein) != 0) | (np.diff(position) != 1)
    observed, observed_sizes = _segments(labels, breaks)
    predicted, predicted_sizes = _segments(predictions, breaks)
    # The intersection of an observed and a predicted segment is one run of residues.
    same = np.flatnonzero(labels == predictions)
    first = np.ones(same.size, bool)
    first[1:] = (np.diff(observed[same]) != 0) | (np.diff(predicted[same]) != 0)
    starts = np.flatnonzero(first)
    minov = np.diff(np.append(starts, same.size))
    at = same[starts]
    size1 = observed_sizes[observed[at]]
    size2 = predicted_sizes[predicted[at]]
    maxov = size1 + size2 - minov
    delta = np.minimum.reduce([maxov - minov, minov, size1 // 2, size2 // 2])
    score = (minov + delta) / np.maximum(maxov, 1) * size1
    alone = np.ones(len(observed_sizes), bool)
    alone[observed[at]] = False
    single = np.flatnonzero(np.diff(observed, prepend=-1))[alone]
    cells = protein * num_classes + labels
    shape = num_proteins, num_classes
    return Overlap(
        _sums(cells[at], score, shape),
        _sums(cells[at], size1, shape)
        + _sums(cells[single], observed_sizes[alone], shape),
    )


def _segments(
    classes: np.ndarray, breaks: np.ndarray
) -> tuple[Int64[np.ndarray, " items"], Int64[np.ndarray, " segments"]]:
    """Segment of each residue, and the lengths of the segments."""
    changes = breaks.copy()
    changes[1:] |= np.diff(classes) != 0
    segment = np.cumsum(changes) - 1
    return segment, np.bincount(segment, minlength=0)


def _sums(cells, values, shape) -> Float64[np.ndarray, "proteins classes"]:
    size = shape[0] * shape[1]
    return np.bincount(cells, weights=values, minlength=size).reshape(shape)
