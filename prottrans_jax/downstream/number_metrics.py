"""Metrics of regressions, for weighted proteins at once; NaN where not defined."""

from collections.abc import Callable

from jaxtyping import Float, Float64, Int
import numpy as np

from prottrans_jax.downstream import class_metrics
from prottrans_jax.downstream import outcomes as outcomes_lib

# A variance below this share of the mean square is rounding.
_ROUNDING = 1e-12
# Items of all resamples that are ranked at a time.
_MAX_ITEMS = 1 << 22
Weights = Float64[np.ndarray, "resamples proteins"]
Values = Float64[np.ndarray, " resamples"]


def moments(
    outcomes: outcomes_lib.Outcomes,
) -> Float64[np.ndarray, "proteins 6"]:
    """Sums of 1, x, y, x^2, y^2 and x y; x: labels, y: predictions, both shifted."""
    x, y = _shifted(outcomes.labels), _shifted(outcomes.predictions)
    terms = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = [
        np.bincount(outcomes.protein, weights=term, minlength=outcomes.num_proteins)
        for term in terms
    ]
    return np.stack(sums, -1)


def correlation(
    sums: Float[np.ndarray, "*resamples 6"],
) -> Float[np.ndarray, "*resamples"]:
    """Pearson's correlation from `moments`."""
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variances = [
        np.where(v <= _ROUNDING * square * count, 0.0, v)
        for v, square in ((count * xx - x * x, xx), (count * yy - y * y, yy))
    ]
    return class_metrics.ratio(
        count * xy - x * y, np.sqrt(variances[0]) * np.sqrt(variances[1])
    )


def squared_errors(
    outcomes: outcomes_lib.Outcomes,
) -> Float64[np.ndarray, "proteins 2"]:
    """Sum of squared errors of each protein, and number of its items."""
    errors = (outcomes.labels - outcomes.predictions) ** 2
    sums = [
        np.bincount(outcomes.protein, weights=term, minlength=outcomes.num_proteins)
        for term in (errors, np.ones_like(errors))
    ]
    return np.stack(sums, -1)


def root_mean(
    sums: Float[np.ndarray, "*resamples 2"],
) -> Float[np.ndarray, "*resamples"]:
    """Root of the first sum over the second."""
    return np.sqrt(class_metrics.ratio(sums[..., 0], sums[..., 1]))


def spearman(outcomes: outcomes_lib.Outcomes) -> Callable[[Weights], Values]:
    """Spearman's correlation as a function of the weights of the proteins.

    Ranks are those within the resample; an item of weight w counts w times. Ties have
    their mean rank.
    """
    ranks = [_Ranks(values) for values in (outcomes.labels, outcomes.predictions)]

    def values(weights: Weights) -> Values:
        step = max(1, _MAX_ITEMS // max(len(outcomes.protein), 1))
        parts = [
            _weighted(weights[start : start + step, outcomes.protein], ranks)
            for start in range(0, len(weights), step)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    return values


def spearman_of_each(
    outcomes: outcomes_lib.Outcomes,
) -> Float64[np.ndarray, " proteins"]:
    """Spearman's correlation within each protein."""
    found = np.full(outcomes.num_proteins, np.nan)
    bounds = np.searchsorted(outcomes.protein, np.arange(outcomes.num_proteins + 1))
    for index in range(outcomes.num_proteins):
        part = slice(bounds[index], bounds[index + 1])
        ranks = [_Ranks(v[part]) for v in (outcomes.labels, outcomes.predictions)]
        if part.stop - part.start > 1:
            found[index] = _weighted(np.ones((1, part.stop - part.start)), ranks)[0]
    return found


class _Ranks:
    """Mean ranks of values under weights."""

    def __init__(self, values: Float[np.ndarray, " items"]):
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        first = np.ones(len(values), bool)
        first[1:] = np.diff(ordered) != 0
        self._starts = np.flatnonzero(first)
        self._group: Int[np.ndarray, " items"] = np.empty(len(values), np.int64)
        self._group[self._order] = np.cumsum(first) - 1

    def __call__(
        self, weights: Float64[np.ndarray, "resamples items"]
    ) -> Float64[np.ndarray, "resamples items"]:
        groups = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        middle = np.cumsum(groups, axis=1) - (groups - 1) / 2
        return middle[:, self._group]


def _weighted(
    weights: Float64[np.ndarray, "resamples items"], ranks: list[_Ranks]
) -> Values:
    """Weighted Pearson correlation of ranks."""
    if not weights.shape[1]:
        return np.full(len(weights), np.nan)
    total = weights.sum(1)
    # The weighted mean of the ranks is (total + 1) / 2, whatever the values.
    x, y = (rank(weights) - (total[:, None] + 1) / 2 for rank in ranks)
    xx, yy, xy = ((weights * a * b).sum(1) for a, b in ((x, x), (y, y), (x, y)))
    return class_metrics.ratio(xy, np.sqrt(xx) * np.sqrt(yy))


def _shifted(values: Float64[np.ndarray, " items"]) -> Float64[np.ndarray, " items"]:
    # By one of the values, so that the difference of equal values is exactly 0.
    return values - np.sort(values)[len(values) // 2] if len(values) else values
