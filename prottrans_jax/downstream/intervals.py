"""Metrics with bootstrap intervals, and the difference between two models.

Proteins are resampled, not residues: residues of a protein are not independent. The
interval is that of percentiles (Efron 1979).
"""

from collections.abc import Iterator, Sequence
import dataclasses

from jaxtyping import Float64
import numpy as np

from prottrans_jax.downstream import outcomes as outcomes_lib
from prottrans_jax.downstream import prediction_metrics
from prottrans_jax.proteins import plurals

# Weights (resamples times proteins) that are in memory at a time.
_MAX_WEIGHTS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval.

    Attributes:
      metric: Name of the metric.
      value: Of all proteins.
      low: Lower end of the interval; NaN if it is not defined.
      high: Upper end.
      level: Probability of the interval.
      num_proteins: Number of proteins with a label that counts.
      resamples: Number of resamples.
      note: What is not defined, and why; "" if all is.
    """

    metric: str
    value: float
    low: float
    high: float
    level: float
    num_proteins: int
    resamples: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """The second model's value minus the first's, with the interval of the difference.

    Attributes:
      p: Two-sided p-value of no difference: twice the share of resamples on the side of
        0 where fewer are, at least 2 / (resamples + 1) and at most 1.
    """

    p: float = float("nan")


def evaluate(
    outcomes: outcomes_lib.Outcomes,
    metrics: Sequence[str | prediction_metrics.Metric],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Metrics with intervals, all from the same resamples of the proteins.

    Args:
      outcomes: Labels and predictions.
      metrics: Keys of `prediction_metrics.METRICS`, or metrics, such as those of
        `prediction_metrics.of_class`.
      resamples: Number of resamples.
      seed: Seed of the resamples.
      level: Probability of the intervals.

    Raises:
      ValueError: A metric is unknown or not for these labels.
    """
    chosen = [
        prediction_metrics.get(metric) if isinstance(metric, str) else metric
        for metric in metrics
    ]
    drawn = _resampled([outcomes], chosen, resamples, seed, level)
    found = {}
    for metric, (values, samples) in zip(chosen, drawn, strict=True):
        low, high, notes = _ends(metric, values[0], samples[0], outcomes, level)
        found[metric.name] = Interval(
            metric.name,
            float(values[0]),
            low,
            high,
            level,
            _num_counted(outcomes),
            resamples,
            "; ".join(notes),
        )
    return found


def difference(
    first: outcomes_lib.Outcomes,
    second: outcomes_lib.Outcomes,
    metric: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Difference of a metric between two models on the same proteins (paired).

    Each resample takes the same proteins for both models.

    Args:
      first: Labels, and predictions of the first model.
      second: The same labels, and predictions of the second model.
      metric: A key of `prediction_metrics.METRICS`.
      resamples: Number of resamples.
      seed: Seed of the resamples.
      level: Probability of the interval.

    Raises:
      ValueError: The labels differ, or as `evaluate`.
    """
    same = first.num_proteins == second.num_proteins and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("labels", "protein", "position")
    )
    if not same:
        raise ValueError(
            "the two models were not evaluated on the same labels: a paired comparison "
            "needs the same proteins in the same order, and the same mask."
        )
    chosen = prediction_metrics.get(metric)
    ((values, samples),) = _resampled([first, second], [chosen], resamples, seed, level)
    value = float(values[1] - values[0])
    differences = samples[1] - samples[0]
    low, high, notes = _ends(chosen, value, differences, first, level)
    defined = differences[~np.isnan(differences)]
    p = float("nan")
    if not np.isnan(low):
        fewer = min((defined <= 0).sum(), (defined >= 0).sum())
        p = min(1.0, 2 * (fewer + 1) / (defined.size + 1))
    counted = _num_counted(first)
    note = "; ".join(notes)
    return Difference(metric, value, low, high, level, counted, resamples, note, p)


def _resampled(
    models: Sequence[outcomes_lib.Outcomes],
    metrics: Sequence[prediction_metrics.Metric],
    resamples: int,
    seed: int,
    level: float,
) -> list[
    tuple[Float64[np.ndarray, " models"], Float64[np.ndarray, "models resamples"]]
]:
    """For each metric, values of the models, and their values in each resample."""
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples={resamples}, level={level}: at least one resample, and a level "
            "between 0 and 1."
        )
    prepared = []
    for metric in metrics:
        for model in models:
            metric.check(model)
        prepared.append([metric.prepare(model) for model in models])
    number = models[0].num_proteins
    whole = np.ones((1, number))
    samples: list[list[list[np.ndarray]]] = [[[] for _ in models] for _ in metrics]
    for weights in _weights(number, resamples, seed):
        for row, functions in zip(samples, prepared, strict=True):
            for column, function in zip(row, functions, strict=True):
                column.append(function(weights))
    return [
        (
            np.array([function(whole)[0] for function in functions]),
            np.stack([np.concatenate(column) for column in row]),
        )
        for row, functions in zip(samples, prepared, strict=True)
    ]


def _weights(
    number: int, resamples: int, seed: int
) -> Iterator[Float64[np.ndarray, "chunk proteins"]]:
    """How often each protein is in each resample."""
    random = np.random.default_rng(seed)
    step = max(1, _MAX_WEIGHTS // max(number, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(number, size=(rows, number)) if number else None
        if drawn is None:
            yield np.zeros((rows, 0))
            continue
        drawn += np.arange(rows)[:, None] * number
        counts = np.bincount(drawn.reshape(-1), minlength=rows * number)
        yield counts.reshape(rows, number).astype(np.float64)


def _ends(
    metric: prediction_metrics.Metric,
    value: float,
    samples: Float64[np.ndarray, " resamples"],
    outcomes: outcomes_lib.Outcomes,
    level: float,
) -> tuple[float, float, list[str]]:
    """Ends of the interval, and notes about what is not defined."""
    nothing = float("nan"), float("nan")
    if np.isnan(value):
        return *nothing, [f"{metric.name} is not defined: {metric.undefined}"]
    counted = _num_counted(outcomes)
    if counted < 2:
        named = plurals.count(counted, "protein")
        return *nothing, [f"no interval: {named} with a label that counts"]
    notes = []
    defined = samples[~np.isnan(samples)]
    if defined.size < samples.size:
        lost = samples.size - defined.size
        notes.append(
            f"{lost:,} of {samples.size:,} resamples left out: {metric.undefined}"
        )
        if not defined.size:
            return *nothing, notes
    if absent := _absent(metric, outcomes):
        notes.append(absent)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), notes


def _absent(metric: prediction_metrics.Metric, outcomes: outcomes_lib.Outcomes) -> str:
    if metric.name not in ("balanced_accuracy", "macro_f1"):
        return ""
    absent = set(range(outcomes.num_classes)) - set(outcomes.labels.tolist())
    if not absent:
        return ""
    named = plurals.count(len(absent), "class", "classes")
    return f"{named} without a label: {', '.join(map(str, sorted(absent)))}"


def _num_counted(outcomes: outcomes_lib.Outcomes) -> int:
    return len(np.unique(outcomes.protein))
