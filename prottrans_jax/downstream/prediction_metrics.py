"""Metrics by name: what each counts, and its value for proteins with any weights.

Residues of all proteins are counted together, except by the metrics named
..._per_protein, which are means over proteins, each protein counting the same. Values
are shares of 1, not percentages. A value that is not defined is NaN, never 0.
"""

from collections.abc import Callable, Sequence
import dataclasses
import difflib

from jaxtyping import Float, Float64
import numpy as np

from prottrans_jax.downstream import class_metrics, number_metrics
from prottrans_jax.downstream import outcomes as outcomes_lib

Weights = Float64[np.ndarray, "resamples proteins"]
Values = Float64[np.ndarray, " resamples"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: Its key in `METRICS`.
      counts: What it counts, for tables and help.
      prepare: From outcomes to a function that gives the value for each row of weights
        [resamples, proteins]: a protein of weight w counts as w copies of it.
      undefined: When it is NaN.
      of_classes: For classes; False: for numbers.
      num_classes: Number of classes that it is for; None: any.
      higher_is_better: False for errors.
    """

    name: str
    counts: str
    prepare: Callable[[outcomes_lib.Outcomes], Callable[[Weights], Values]]
    undefined: str
    of_classes: bool = True
    num_classes: int | None = None
    higher_is_better: bool = True

    def __call__(
        self,
        labels: Sequence[np.typing.ArrayLike],
        predictions: Sequence[np.typing.ArrayLike],
        weights: Sequence[np.typing.ArrayLike] | None = None,
        *,
        num_classes: int | None = None,
    ) -> float:
        """The value; arguments as `outcomes.pair`, which says what is refused."""
        return self.of(
            outcomes_lib.pair(labels, predictions, weights, num_classes=num_classes)
        )

    def of(self, outcomes: outcomes_lib.Outcomes) -> float:
        """The value of outcomes.

        Raises:
          ValueError: The metric is not for this kind of labels.
        """
        self.check(outcomes)
        return float(self.prepare(outcomes)(np.ones((1, outcomes.num_proteins)))[0])

    def check(self, outcomes: outcomes_lib.Outcomes) -> None:
        """Raises ValueError if the metric is not for labels of this kind."""
        if self.of_classes != (outcomes.num_classes > 0):
            kinds = ("numbers", "classes")
            raise ValueError(
                f"the metric {self.name} is for {kinds[self.of_classes]}; the labels "
                f"are {kinds[outcomes.num_classes > 0]}."
            )
        if self.num_classes not in (None, outcomes.num_classes):
            raise ValueError(
                f"the metric {self.name} is for {self.num_classes} classes; there are "
                f"{outcomes.num_classes}. accuracy counts the same."
            )


def get(name: str) -> Metric:
    """The metric with a name.

    Raises:
      ValueError: There is none; names those most like it.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.4) or list(METRICS)
    raise ValueError(f"there is no metric {name!r}. Nearest: {', '.join(near)}.")


def of_class(index: int, name: str) -> dict[str, Metric]:
    """Metrics of one class against the others, by what they are.

    Args:
      index: Index of the class.
      name: Its name; the metrics are named "recall of NAME" and so on.
    """
    of_confusion = {
        "accuracy": (class_metrics.class_accuracy, _NO_ITEM),
        "precision": (class_metrics.precision, f"{name} is never predicted"),
        "recall": (class_metrics.recall, f"no label is {name}"),
        "f1": (class_metrics.f1, f"{name} is neither in labels nor in predictions"),
    }

    def overlap_sums(outcomes: outcomes_lib.Outcomes) -> np.ndarray:
        overlap = outcomes.overlap
        return np.stack([overlap.score[:, index], overlap.size[:, index]], -1)

    found = {
        kind: Metric(
            f"{kind} of {name}",
            str(value.__doc__).partition("\n")[0],
            _of_confusion(_item(value, index)),
            undefined,
        )
        for kind, (value, undefined) in of_confusion.items()
    }
    found["sov"] = Metric(
        f"sov of {name}",
        "segment overlap SOV'99 of the observed segments of the class",
        _of_sums(overlap_sums, _quotient),
        f"no label is {name}",
    )
    return found


def for_task(num_classes: int, level: str) -> list[Metric]:
    """The metrics that make sense for a task, without synonyms of accuracy."""
    return [
        metric
        for metric in METRICS.values()
        if metric.of_classes == (num_classes > 0)
        and metric.num_classes is None
        and (level == "residue" or not metric.name.endswith("_per_protein"))
        and (level == "residue" or metric.name != "sov")
    ]


def _item(value: Callable[..., np.ndarray], index: int) -> Callable[..., np.ndarray]:
    return lambda matrices: value(matrices)[..., index]


def _of_confusion(
    value: Callable[[Float[np.ndarray, "*resamples classes classes"]], np.ndarray],
) -> Callable[[outcomes_lib.Outcomes], Callable[[Weights], Values]]:
    def prepare(outcomes: outcomes_lib.Outcomes) -> Callable[[Weights], Values]:
        counts = outcomes.confusion.astype(np.float64)
        shape = (-1, outcomes.num_classes, outcomes.num_classes)
        flat = counts.reshape(outcomes.num_proteins, -1)
        return lambda weights: value((weights @ flat).reshape(shape))

    return prepare


def _of_sums(
    statistics: Callable[[outcomes_lib.Outcomes], Float64[np.ndarray, "proteins k"]],
    value: Callable[[Float[np.ndarray, "*resamples k"]], np.ndarray],
) -> Callable[[outcomes_lib.Outcomes], Callable[[Weights], Values]]:
    def prepare(outcomes: outcomes_lib.Outcomes) -> Callable[[Weights], Values]:
        sums = statistics(outcomes)
        return lambda weights: value(weights @ sums)

    return prepare


def _mean(
    of_each: Callable[[outcomes_lib.Outcomes], Float64[np.ndarray, " proteins"]],
) -> Callable[[outcomes_lib.Outcomes], Callable[[Weights], Values]]:
    """Mean over the proteins whose own value is defined."""

    def statistics(outcomes: outcomes_lib.Outcomes) -> np.ndarray:
        values = of_each(outcomes)
        defined = ~np.isnan(values)
        return np.stack([np.where(defined, values, 0.0), defined], -1)

    return _of_sums(statistics, _quotient)


def _quotient(sums: Float[np.ndarray, "*resamples 2"]) -> np.ndarray:
    return class_metrics.ratio(sums[..., 0], sums[..., 1])


def _accuracy_of_each(outcomes: outcomes_lib.Outcomes) -> np.ndarray:
    return class_metrics.accuracy(outcomes.confusion.astype(np.float64))


def _overlap_sums(outcomes: outcomes_lib.Outcomes) -> np.ndarray:
    overlap = outcomes.overlap
    return np.stack([overlap.score.sum(-1), overlap.size.sum(-1)], -1)


_NO_ITEM = "no label counts"
_NO_PROTEIN = "no protein has a label that counts"
_CONSTANT = "labels or predictions are constant, or fewer than two count"

_ALL = (
    Metric(
        "accuracy",
        "items with the right class, of all that count",
        _of_confusion(class_metrics.accuracy),
        _NO_ITEM,
    ),
    *(
        Metric(
            f"q{number}",
            f"accuracy over {items}: the paper's Q{number}",
            _of_confusion(class_metrics.accuracy),
            _NO_ITEM,
            num_classes=number,
        )
        for number, items in (
            *((3, "residues"), (8, "residues")),
            *((10, "proteins"), (2, "proteins")),
        )
    ),
    Metric(
        "accuracy_per_protein",
        "mean over proteins of the accuracy within each",
        _mean(_accuracy_of_each),
        _NO_PROTEIN,
    ),
    Metric(
        "balanced_accuracy",
        "mean recall of the classes that the labels have",
        _of_confusion(class_metrics.balanced_accuracy),
        _NO_ITEM,
    ),
    Metric(
        "macro_f1",
        "mean F1 of the classes that labels or predictions have",
        _of_confusion(class_metrics.macro_f1),
        _NO_ITEM,
    ),
    Metric(
        "mcc",
        "Matthews correlation coefficient; R_K for more than two classes",
        _of_confusion(class_metrics.mcc),
        "labels or predictions have fewer than two classes",
    ),
    Metric(
        "sov",
        "segment overlap SOV'99 (Zemla et al. 1999), segments of all proteins together",
        _of_sums(_overlap_sums, _quotient),
        _NO_ITEM,
    ),
    Metric(
        "sov_per_protein",
        "mean over proteins of the SOV'99 of each",
        _mean(lambda outcomes: _quotient(_overlap_sums(outcomes))),
        _NO_PROTEIN,
    ),
    Metric(
        "spearman",
        "Spearman's rank correlation over all items",
        number_metrics.spearman,
        _CONSTANT,
        of_classes=False,
    ),
    Metric(
        "spearman_per_protein",
        "mean over proteins of Spearman's correlation within each",
        _mean(number_metrics.spearman_of_each),
        "in no protein do both vary",
        of_classes=False,
    ),
    Metric(
        "pearson",
        "Pearson's correlation over all items",
        _of_sums(number_metrics.moments, number_metrics.correlation),
        _CONSTANT,
        of_classes=False,
    ),
    Metric(
        "pearson_per_protein",
        "mean over proteins of Pearson's correlation within each",
        _mean(lambda x: number_metrics.correlation(number_metrics.moments(x))),
        "in no protein do both vary",
        of_classes=False,
    ),
    Metric(
        "rmse",
        "root of the mean squared error over all items",
        _of_sums(number_metrics.squared_errors, number_metrics.root_mean),
        _NO_ITEM,
        of_classes=False,
        higher_is_better=False,
    ),
    Metric(
        "rmse_per_protein",
        "mean over proteins of the root mean squared error of each",
        _mean(lambda x: number_metrics.root_mean(number_metrics.squared_errors(x))),
        _NO_PROTEIN,
        of_classes=False,
        higher_is_better=False,
    ),
)
METRICS = {metric.name: metric for metric in _ALL}
