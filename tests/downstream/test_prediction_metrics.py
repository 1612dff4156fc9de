"""Metrics equal those of scikit-learn, SciPy and a published SOV; NaN if undefined."""

import warnings

import numpy as np
import pytest
from scipy import stats

from prottrans_jax.downstream import labelled, outcomes, prediction_metrics

METRICS = prediction_metrics.METRICS
LENGTHS = (7, 1, 12, 4, 9)


def cut(values):
    return np.split(values, np.cumsum(LENGTHS)[:-1])


def random_classes(num_classes, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=sum(LENGTHS))
    wrong = random.random(labels.size) < 0.4
    predictions = np.where(
        wrong, random.integers(num_classes, size=labels.size), labels
    )
    return labels, predictions


def of_text(text):
    return [np.array([ord(letter) - ord("A") for letter in text])]


@pytest.mark.parametrize("num_classes", [2, 3, 8])
def test_class_metrics_are_those_of_scikit_learn(num_classes):
    reference = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    labels, predictions = random_classes(num_classes, seed=num_classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predictions),
        "macro_f1": reference.f1_score(labels, predictions, average="macro"),
        "mcc": reference.matthews_corrcoef(labels, predictions),
    }
    for name, value in expected.items():
        ours = METRICS[name](cut(labels), cut(predictions), num_classes=num_classes)
        assert ours == pytest.approx(value, rel=1e-12), name


def test_metrics_of_a_class_and_confusion_are_those_of_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    labels, predictions = random_classes(3, seed=1)
    paired = outcomes.pair(cut(labels), cut(predictions))
    np.testing.assert_array_equal(
        paired.confusion.sum(0),
        reference.confusion_matrix(labels, predictions),
    )
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels, predictions
    )
    for index in range(3):
        ours = prediction_metrics.of_class(index, "HEC"[index])
        assert ours["precision"].of(paired) == pytest.approx(precision[index])
        assert ours["recall"].of(paired) == pytest.approx(recall[index])
        assert ours["f1"].of(paired) == pytest.approx(f1[index])
        one = reference.accuracy_score(labels == index, predictions == index)
        assert ours["accuracy"].of(paired) == pytest.approx(one)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_and_errors_are_those_of_scipy_and_numpy(ties):
    random = np.random.default_rng(3)
    labels = random.normal(size=sum(LENGTHS)) * 3 + 1000
    predictions = labels + random.normal(size=labels.size)
    if ties:
        labels, predictions = np.round(labels), np.round(predictions)
    expected = {
        "spearman": stats.spearmanr(labels, predictions).statistic,
        "pearson": stats.pearsonr(labels, predictions).statistic,
        "rmse": np.sqrt(np.mean((labels - predictions) ** 2)),
    }
    for name, value in expected.items():
        assert METRICS[name](cut(labels), cut(predictions)) == pytest.approx(value), (
            name
        )


def test_means_over_proteins_leave_out_proteins_without_a_value():
    random = np.random.default_rng(4)
    labels, predictions = random.normal(size=(2, sum(LENGTHS)))
    parts = list(zip(cut(labels), cut(predictions), strict=True))
    # A correlation of one residue is not defined.
    several = [part for part in parts if len(part[0]) > 1]
    assert len(several) == 4
    expected = np.mean([stats.spearmanr(*part).statistic for part in several])
    ours = METRICS["spearman_per_protein"](cut(labels), cut(predictions))
    assert ours == pytest.approx(expected)
    expected = np.mean([stats.pearsonr(*part).statistic for part in several])
    ours = METRICS["pearson_per_protein"](cut(labels), cut(predictions))
    assert ours == pytest.approx(expected)
    expected = np.mean([np.sqrt(np.mean((x - y) ** 2)) for x, y in parts])
    assert METRICS["rmse_per_protein"](cut(labels), cut(predictions)) == pytest.approx(
        expected
    )


def test_accuracy_over_residues_and_per_protein_weigh_differently():
    labels = [np.array([0, 0, 0, 0]), np.array([1])]
    predictions = [np.array([0, 0, 0, 1]), np.array([0])]
    assert METRICS["accuracy"](labels, predictions) == 3 / 5
    assert METRICS["accuracy_per_protein"](labels, predictions) == (3 / 4 + 0) / 2


# Values of SOV_refine.pl (Liu & Wang 2018), github.com/zwang-bioinformatics/SOV_refine
# at 61d6571: its line SOV_99, printed with six decimals.
SOV = [
    ("CCEEECCCCHHHHHHCCC", "CEEEECCCHHHHCCHHCC", 0.708333),
    ("HHHHHHHHHH", "CCHHHHHHCC", 0.9),
    ("CCCHHHHHHHHHHCCCEEEEEECC", "CCCHHHCHHHCHHCCEEECEEECC", 0.511429),
    ("GGHHHHHHTTSEEEEBTTCCII", "GHHHHHHTTTSEEEETTTCCCI", 0.863636),
    ("HHHEEECCC", "EEECCCHHH", 0.0),
]


@pytest.mark.parametrize(("observed", "predicted", "value"), SOV)
def test_segment_overlap_is_that_of_a_published_program(observed, predicted, value):
    ours = METRICS["sov"](of_text(observed), of_text(predicted), num_classes=26)
    assert ours == pytest.approx(value, abs=1e-6)


def test_segment_overlap_by_hand():
    """Zemla et al. 1999, equation 1: two predicted helices in one observed one."""
    # Pairs with HHHHHHHH (8): minov 3 and 2, maxov 8, delta min(5, 3, 4, 1) = 1 and
    # min(6, 2, 4, 1) = 1, so (4 + 3) / 8 * 8 of 16.
    ours = METRICS["sov"](of_text("HHHHHHHH"), of_text("HHHCCCHH"), num_classes=26)
    assert ours == pytest.approx(7 / 16)


def test_residues_that_do_not_count_end_segments():
    labels, predictions = of_text("HHHXHHH"), of_text("HHHXHHH")
    weights = [np.array([1, 1, 1, 0, 1, 1, 1])]
    ours = METRICS["sov"](labels, predictions, weights, num_classes=26)
    assert ours == 1.0
    # Joined, the two observed segments would be one of six, with one of five predicted.
    predictions = of_text("HHHXCHH")
    ours = METRICS["sov"](labels, predictions, weights, num_classes=26)
    # HHH: 1 of 3; CHH in HHH: minov 2, maxov 3, delta 1: 3 / 3 * 3 of 3.
    assert ours == 1.0


def test_segments_end_with_their_protein():
    labels = [np.array([0, 0]), np.array([0, 0])]
    predictions = [np.array([0, 0]), np.array([1, 1])]
    assert METRICS["sov"](labels, predictions) == 0.5
    assert METRICS["sov_per_protein"](labels, predictions) == 0.5
    # The first residue that counts has the position after the last one before it.
    labels, predictions = [[0, 0], [0, 0, 0]], [[0, 0], [0, 0, 1]]
    value = METRICS["sov"](labels, predictions, [[1, 1], [0, 0, 1]])
    assert value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "labels", "predictions"),
    [
        ("mcc", [0, 0, 0], [0, 1, 0]),
        ("spearman", [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]),
        ("pearson", [0.1, 0.3, 0.7], [0.1, 0.1, 0.1]),
        ("spearman", [1.0], [2.0]),
        ("accuracy", [-1, -1], [0, 1]),
        ("rmse", [np.nan], [1.0]),
        ("sov", [-1], [0]),
    ],
)
def test_undefined_values_are_nan_and_without_warning(name, labels, predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = METRICS[name](
            [np.array(labels)],
            [np.array(predictions)],
            num_classes=None if isinstance(labels[0], float) else 2,
        )
    assert np.isnan(value)


def test_correlation_of_a_resample_with_one_value_is_not_defined():
    labels = [[0.3, 0.1], [0.7, 0.2], [1.9, 0.4, 0.8, 1.1, 0.6]]
    predictions = [[0.1, 0.1], [0.1, 0.1], [5.7, 3.3, 4.4, 6.1, 7.7]]
    prepared = METRICS["pearson"].prepare(outcomes.pair(labels, predictions))
    weights = np.array([[k, 3.0 - k, 0.0] for k in range(4)])
    assert np.isnan(prepared(weights)).all()


def test_a_class_that_is_absent_has_no_recall_and_does_not_lower_the_mean():
    paired = outcomes.pair([[0, 0, 1]], [[0, 1, 1]], num_classes=3)
    absent = prediction_metrics.of_class(2, "C")
    assert np.isnan(
        [absent[kind].of(paired) for kind in ("recall", "precision", "f1")]
    ).all()
    assert METRICS["balanced_accuracy"].of(paired) == (1 / 2 + 1) / 2


def test_weights_and_labels_without_class_leave_residues_out():
    labels = [np.array([0, labelled.NO_CLASS, 1, 1])]
    value = METRICS["accuracy"](
        labels, [np.array([0, 0, 1, 0])], [np.array([1, 1, 1, 0])]
    )
    assert value == 1.0


def test_q8_of_three_classes_is_refused():
    with pytest.raises(ValueError, match="q8 is for 8 classes; there are 3"):
        METRICS["q8"]([[0, 2]], [[0, 1]], num_classes=3)
    assert METRICS["q3"]([[0, 2]], [[0, 1]], num_classes=3) == 0.5


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([[0, 1]], [[0]], r"protein 0 \(from 0\) have the shape \(1,\), its labels"),
        ([[0, 1]], [[0, 1], [1]], "2 predictions for 1 proteins"),
        ([[0, 1]], [[0, 5]], "a class is 5; there are 2"),
        ([[0, 1]], [[0.2, 0.7]], "index of the class with the highest score"),
        ([[0.5, 1.5]], [[0.5, np.nan]], "nan, is that of protein 0, position 1"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        outcomes.pair(labels, predictions, num_classes=2)
