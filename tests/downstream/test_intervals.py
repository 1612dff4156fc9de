"""Bootstrap over proteins: against plain loops, and against scipy.stats.bootstrap."""

import numpy as np
import pytest
from scipy import stats

from prottrans_jax.downstream import intervals, outcomes, prediction_metrics

NUM_PROTEINS = 40


def classes(seed, share_right=0.7, lengths=None):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, size=NUM_PROTEINS) if lengths is None else lengths
    labels = [random.integers(3, size=length) for length in lengths]
    predictions = [
        np.where(
            random.random(x.size) < share_right, x, random.integers(3, size=x.size)
        )
        for x in labels
    ]
    return labels, predictions


def numbers(seed):
    random = np.random.default_rng(seed)
    # Rounded: there are ties.
    labels = [random.normal(size=n).round(1) for n in random.integers(1, 9, size=30)]
    return labels, [(x + random.normal(size=x.size)).round(1) for x in labels]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, classes) for name in ("accuracy", "macro_f1", "mcc", "sov")),
        *((name, classes) for name in ("accuracy_per_protein", "sov_per_protein")),
        *((name, numbers) for name in ("spearman", "pearson", "rmse")),
        *((name, numbers) for name in ("spearman_per_protein", "rmse_per_protein")),
    ],
)
def test_weights_are_the_same_as_copies_of_proteins(name, data):
    labels, predictions = data(seed=2)
    metric = prediction_metrics.METRICS[name]
    random = np.random.default_rng(0)
    drawn = random.integers(len(labels), size=(3, len(labels)))
    weights = [np.bincount(row, minlength=len(labels)) for row in drawn]
    paired = outcomes.pair(labels, predictions)
    ours = metric.prepare(paired)(np.array(weights, np.float64))
    for value, row in zip(ours, drawn, strict=True):
        copied = metric([labels[k] for k in row], [predictions[k] for k in row])
        assert value == pytest.approx(copied, rel=1e-9)


def test_interval_is_that_of_scipy():
    labels, predictions = classes(seed=3)
    right = np.array([(x == y).sum() for x, y in zip(labels, predictions, strict=True)])
    sizes = np.array([len(x) for x in labels])
    theirs = stats.bootstrap(
        (right, sizes),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    paired = outcomes.pair(labels, predictions)
    ours = intervals.evaluate(paired, ["accuracy"], resamples=20_000)["accuracy"]
    assert ours.value == right.sum() / sizes.sum()
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)


def test_same_seed_gives_the_same_interval_whatever_else_is_evaluated():
    paired = outcomes.pair(*classes(seed=4))
    both = intervals.evaluate(paired, ["mcc", "accuracy"], seed=5)
    alone = intervals.evaluate(paired, ["accuracy"], seed=5)
    assert both["accuracy"] == alone["accuracy"]
    assert intervals.evaluate(paired, ["accuracy"], seed=6) != alone


def test_resamples_in_several_chunks_are_the_same(monkeypatch):
    paired = outcomes.pair(*numbers(seed=4))
    names = ["spearman", "rmse"]
    whole = intervals.evaluate(paired, names, resamples=50)
    monkeypatch.setattr(intervals, "_MAX_WEIGHTS", 7 * paired.num_proteins)
    assert intervals.evaluate(paired, names, resamples=50) == whole


def test_difference_is_paired():
    labels, first = classes(seed=7, share_right=0.5)
    # Better by one residue in every tenth protein: unpaired intervals overlap widely.
    second = [x.copy() for x in first]
    for truth, prediction in zip(labels[::4], second[::4], strict=True):
        prediction[:] = truth
    a, b = outcomes.pair(labels, first), outcomes.pair(labels, second)
    found = intervals.difference(a, b, "accuracy")
    metric = prediction_metrics.METRICS["accuracy"]
    assert found.value == pytest.approx(metric.of(b) - metric.of(a))
    assert 0 < found.low < found.value < found.high
    assert found.p == pytest.approx(2 / 1001)
    reverse = intervals.difference(b, a, "accuracy")
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))


def test_difference_of_equal_models_is_zero_with_p_1():
    paired = outcomes.pair(*classes(seed=8))
    found = intervals.difference(paired, paired, "mcc")
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_difference_between_models_of_other_proteins_is_refused():
    a, b = outcomes.pair(*classes(seed=8)), outcomes.pair(*classes(seed=9))
    with pytest.raises(ValueError, match="needs the same proteins in the same order"):
        intervals.difference(a, b, "accuracy")


def test_one_protein_has_a_value_but_no_interval():
    paired = outcomes.pair([[0, 1, 1]], [[0, 1, 0]])
    found = intervals.evaluate(paired, ["accuracy"])["accuracy"]
    assert found.value == pytest.approx(2 / 3)
    assert np.isnan([found.low, found.high]).all()
    assert found.note == "no interval: 1 protein with a label that counts"


def test_undefined_value_is_nan_and_says_why():
    paired = outcomes.pair([[1.0, 2.0], [3.0]], [[5.0, 5.0], [5.0]])
    found = intervals.evaluate(paired, ["spearman"])["spearman"]
    assert np.isnan([found.value, found.low, found.high]).all()
    assert "not defined: labels or predictions are constant" in found.note


def test_resamples_without_a_value_are_counted():
    # Most resamples lack the only protein of class 1.
    labels = [[0], [0], [1], [0], [0]]
    paired = outcomes.pair(labels, [[0], [1], [1], [0], [0]])
    found = intervals.evaluate(paired, ["mcc"], resamples=200)["mcc"]
    lost = int(found.note.split()[0])
    # (4 / 5) ** 5 have no label 1.
    assert lost / 200 == pytest.approx(0.33, abs=0.1)
    assert not np.isnan(found.low)


def test_classes_without_labels_are_named():
    paired = outcomes.pair([[0, 1], [1]], [[0, 1], [0]], num_classes=4)
    found = intervals.evaluate(paired, ["macro_f1"])["macro_f1"]
    assert found.note == "2 classes without a label: 2, 3"


def test_level_widens_the_interval():
    paired = outcomes.pair(*classes(seed=10))
    narrow, wide = (
        intervals.evaluate(paired, ["accuracy"], level=level)["accuracy"]
        for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
