"""Labels beside predictions: what metrics are computed from."""

from collections.abc import Sequence
import dataclasses
import functools
import math

from jaxtyping import Float64, Int64, Shaped
import numpy as np

from prottrans_jax.downstream import labelled, segment_overlap


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """Labels that count, with their predictions, of all proteins in one array.

    Attributes:
      labels: Classes, or numbers of a regression.
      predictions: Of the same kind.
      protein: Index of the protein of each item, not decreasing.
      position: Position in its protein; residues between two items do not count.
      num_proteins: Number of proteins, including those without any item.
      num_classes: Number of classes; 0: a regression.
    """

    labels: Int64[np.ndarray, " items"] | Float64[np.ndarray, " items"]
    predictions: Int64[np.ndarray, " items"] | Float64[np.ndarray, " items"]
    protein: Int64[np.ndarray, " items"]
    position: Int64[np.ndarray, " items"]
    num_proteins: int
    num_classes: int

    @functools.cached_property
    def confusion(self) -> Int64[np.ndarray, "proteins classes classes"]:
        """Counts of each protein by class of the label, then of the prediction."""
        shape = self.num_proteins, self.num_classes, self.num_classes
        cells = (self.protein * shape[1] + self.labels) * shape[2] + self.predictions
        return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)

    @functools.cached_property
    def overlap(self) -> segment_overlap.Overlap:
        """Sums of SOV'99 of each protein and class."""
        return segment_overlap.overlap(
            self.labels,
            self.predictions,
            self.protein,
            self.position,
            self.num_proteins,
            self.num_classes,
        )


def pair(
    labels: Sequence[np.typing.ArrayLike],
    predictions: Sequence[np.typing.ArrayLike],
    weights: Sequence[np.typing.ArrayLike] | None = None,
    *,
    num_classes: int | None = None,
) -> Outcomes:
    """Pairs labels with predictions.

    Args:
      labels: An array for each protein, of shape [length], or [] for a label of the
        protein: classes (NO_CLASS: none) or numbers (NaN: none).
      predictions: In the same order and of the same shapes: classes or numbers.
      weights: Of the same shapes; an item with weight 0 does not count.
      num_classes: Of the task; None: as many as occur. 0: a regression.

    Raises:
      ValueError: Shapes differ, a class is out of range, or a prediction that counts is
        not finite.
    """
    given = [predictions] if weights is None else [predictions, weights]
    for values, what in zip(given, ("predictions", "weights"), strict=False):
        _check_shapes(labels, values, what)
    lengths = np.array([np.size(value) for value in labels], np.int64)
    truth = _joined(labels)
    predicted = _joined(predictions)
    regression = np.issubdtype(truth.dtype, np.floating)
    known = ~np.isnan(truth) if regression else truth != labelled.NO_CLASS
    if weights is not None:
        known &= _joined(weights) != 0
    protein = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(truth)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    truth, predicted = truth[known], predicted[known]
    if regression:
        num_classes = 0
        _check_finite(predicted, protein[known], position[known])
    else:
        if not np.issubdtype(predicted.dtype, np.integer) and predicted.size:
            raise ValueError(
                f"labels are classes, but predictions are {predicted.dtype}: give the "
                "index of the class with the highest score."
            )
        num_classes = _num_classes(truth, predicted, num_classes)
    kind = np.float64 if regression else np.int64
    return Outcomes(
        truth.astype(kind),
        predicted.astype(kind),
        protein[known],
        position[known],
        len(lengths),
        num_classes,
    )


def of_set(
    proteins: labelled.LabelledSet, predictions: Sequence[np.typing.ArrayLike]
) -> Outcomes:
    """Pairs the labels of a set with predictions in the order of its proteins.

    Raises:
      ValueError: As `pair`.
    """
    return pair(
        [protein.labels for protein in proteins.proteins],
        predictions,
        [protein.counts for protein in proteins.proteins],
        num_classes=len(proteins.task.classes),
    )


def _joined(values: Sequence[np.typing.ArrayLike]) -> Shaped[np.ndarray, " items"]:
    if not len(values):
        return np.zeros(0, np.int64)
    return np.concatenate([np.asarray(value).reshape(-1) for value in values])


def _check_shapes(
    labels: Sequence[np.typing.ArrayLike],
    values: Sequence[np.typing.ArrayLike],
    what: str,
) -> None:
    if len(labels) != len(values):
        raise ValueError(f"{len(values):,} {what} for {len(labels):,} proteins.")
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        if np.shape(label) != np.shape(value):
            raise ValueError(
                f"{what} of protein {index} (from 0) have the shape {np.shape(value)}, "
                f"its labels {np.shape(label)}."
            )


def _check_finite(predicted, protein, position) -> None:
    bad = np.flatnonzero(~np.isfinite(predicted))
    if bad.size:
        at = bad[0]
        raise ValueError(
            f"{bad.size:,} predictions are not finite; the first, {predicted[at]}, is "
            f"that of protein {protein[at]}, position {position[at]} (from 0)."
        )


def _num_classes(truth, predicted, num_classes: int | None) -> int:
    highest = max(truth.max(initial=-1), predicted.max(initial=-1))
    lowest = min(truth.min(initial=0), predicted.min(initial=0))
    classes = highest + 1 if num_classes is None else num_classes
    if highest >= classes or lowest < 0:
        raise ValueError(
            f"a class is {lowest if lowest < 0 else highest}; there are {classes} "
            "classes, from 0."
        )
    return int(classes)
