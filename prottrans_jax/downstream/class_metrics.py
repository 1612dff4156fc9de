"""Metrics of classes, from a confusion matrix [..., label, prediction].

All take matrices with any leading axes, e.g. of resamples. A value that is not defined
is NaN.
"""

from jaxtyping import Float
import numpy as np

Matrices = Float[np.ndarray, "*resamples classes classes"]
Values = Float[np.ndarray, "*resamples"]
ClassValues = Float[np.ndarray, "*resamples classes"]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def mean_of_defined(values: ClassValues) -> Values:
    """Mean over the last axis without NaN; NaN if all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))


def accuracy(matrices: Matrices) -> Values:
    """Share of items with the right class."""
    return ratio(np.trace(matrices, axis1=-2, axis2=-1), matrices.sum((-2, -1)))


def recall(matrices: Matrices) -> ClassValues:
    """Of the items of a class, the share predicted as it; NaN: the class is absent."""
    return ratio(_diagonal(matrices), matrices.sum(-1))


def precision(matrices: Matrices) -> ClassValues:
    """Of the items predicted as a class, the share of it; NaN: never predicted."""
    return ratio(_diagonal(matrices), matrices.sum(-2))


def f1(matrices: Matrices) -> ClassValues:
    """Harmonic mean of precision and recall; NaN: neither in labels nor predicted."""
    return ratio(2 * _diagonal(matrices), matrices.sum(-1) + matrices.sum(-2))


def class_accuracy(matrices: Matrices) -> ClassValues:
    """Share of items for which "is of this class" is right."""
    total = matrices.sum((-2, -1))[..., None]
    wrong = matrices.sum(-1) + matrices.sum(-2) - 2 * _diagonal(matrices)
    return ratio(total - wrong, total)


def balanced_accuracy(matrices: Matrices) -> Values:
    """Mean recall of the classes that the labels have."""
    return mean_of_defined(recall(matrices))


def macro_f1(matrices: Matrices) -> Values:
    """Mean F1 of the classes that labels or predictions have."""
    return mean_of_defined(f1(matrices))


def mcc(matrices: Matrices) -> Values:
    """Matthews correlation coefficient, for several classes R_K (Gorodkin 2004)."""
    total = matrices.sum((-2, -1))
    right = np.trace(matrices, axis1=-2, axis2=-1)
    labels, predictions = matrices.sum(-1), matrices.sum(-2)
    covariance = right * total - (labels * predictions).sum(-1)
    spread = (total**2 - (labels**2).sum(-1)) * (total**2 - (predictions**2).sum(-1))
    return ratio(covariance, np.sqrt(spread))


def _diagonal(matrices: Matrices) -> ClassValues:
    return np.diagonal(matrices, axis1=-2, axis2=-1)
