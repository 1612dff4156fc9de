"""Contacts. Oracles: hand computation, the definition, scikit-learn."""

import pathlib

import numpy as np
import pytest

from cases import score_cases
from prottrans_jax import cli
from prottrans_jax.scoring import contact_maps, contacts, scorers


def test_apc_subtracts_the_product_of_row_and_column_sums():
    scores = np.array([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]])
    # Sums 3, 5, 4; total 12.
    expected = [
        [-9 / 12, 2 - 15 / 12, 1 - 12 / 12],
        [2 - 15 / 12, -25 / 12, 3 - 20 / 12],
        [1 - 12 / 12, 3 - 20 / 12, -16 / 12],
    ]
    np.testing.assert_allclose(contacts.apc(scores), expected, atol=1e-12)


def test_the_jacobian_is_the_change_of_logits_by_each_substitution(model):
    scorer = scorers.Scorer(model("bert"))
    changes = contacts.jacobian(scorer, "PRTE")
    wild_type, variant = scorer.logits(["PRTE", "PRCE"])
    ids = model("bert").vocabulary.encode(scorers.LETTERS)
    cysteine = scorers.LETTERS.index("C")
    expected = (variant - wild_type)[:, ids]
    np.testing.assert_allclose(changes[2, cysteine], expected, atol=1e-5)
    threonine = scorers.LETTERS.index("T")
    np.testing.assert_allclose(changes[2, threonine], 0, atol=1e-5)


def test_jacobian_contacts_find_the_pair_that_depends_on_each_other():
    generator = np.random.default_rng(0)
    changes = 0.01 * generator.normal(size=(5, 20, 5, 20)).astype(np.float32)
    coupling = generator.normal(size=(20, 20)).astype(np.float32)
    changes[1, :, 4] += coupling
    changes[4, :, 1] += coupling.T
    # The same change for every substitution, or of every logit, is no coupling.
    changes[0, :, 3] += 9.0
    changes[:, :, 2] += generator.normal(size=20).astype(np.float32)
    scores = contacts.jacobian_contacts(changes)
    np.testing.assert_allclose(scores, scores.T, atol=1e-5)
    assert np.unravel_index(scores.argmax(), scores.shape) == (1, 4)


def test_precision_by_hand():
    length = 26
    scores, truth = np.zeros((length, length)), np.zeros((length, length), bool)
    # Long range has the pairs (0, 24), (0, 25), (1, 25): fewer than L and L/5 = 5.
    truth[0, 24] = truth[1, 25] = True
    # Medium range: the five best are 3 contacts; the others are ranked by position.
    for column, is_contact in zip(range(12, 17), (1, 0, 1, 1, 0), strict=True):
        scores[0, column], truth[0, column] = 2.0 - column / 100, is_contact
    result = contact_maps.precision(scores, truth)
    assert result["long P@L"] == result["long P@L/5"] == pytest.approx(2 / 3)
    assert result["medium P@L/5"] == pytest.approx(3 / 5)
    assert result["medium P@L/2"] == pytest.approx(3 / 13)
    assert result["short P@L"] == 0
    known = np.ones_like(truth)
    known[0, 13] = False  # The best of the wrong pairs.
    assert contact_maps.precision(scores, truth, known)["medium P@L/5"] == 3 / 5
    known[0, 16] = False
    assert contact_maps.precision(scores, truth, known)["medium P@L/5"] == 3 / 5
    known[:, 24:] = False
    assert np.isnan(contact_maps.precision(scores, truth, known)["long P@L"])


def test_distances_are_contacts_below_8_angstrom():
    distances = np.array([[0.0, 7.99, 8.0], [7.99, 0.0, np.nan], [8.0, np.nan, 0.0]])
    truth, known = contact_maps.known_contacts(distances, 3, "x")
    assert truth[0].tolist() == [True, True, False]
    assert known[1].tolist() == [True, True, False]
    labels = np.array([[1, 0], [-1, 1]])
    truth, known = contact_maps.known_contacts(labels, 2, "x")
    assert truth.tolist() == [[True, False], [False, True]]
    assert known.tolist() == [[True, True], [False, True]]
    with pytest.raises(
        ValueError, match=r"'a' has the shape \[2, 2\]; the protein has"
    ):
        contact_maps.known_contacts(labels, 3, "the map 'a'")


def _labelled(length=15):
    generator = np.random.default_rng(5)
    features = generator.normal(size=(4, length, length))
    noise = generator.normal(size=(length, length))
    truth = features[0] - 0.5 * features[2] + noise > 0.8
    return features, truth


def test_fitted_weights_are_those_of_scikit_learn():
    features, truth = _labelled()
    regression = contacts.fit([features], [truth])
    # LogisticRegression(penalty="l1", C=0.15, solver="saga", tol=1e-12,
    # max_iter=1000000) of scikit-learn on the 45 pairs with j - i >= 6.
    expected = [0.318033, 0.0, -0.120323, 0.0]
    np.testing.assert_allclose(regression.coefficients, expected, atol=1e-4)
    assert regression.intercept == pytest.approx(-0.492064, abs=1e-4)


def test_attention_features_are_symmetric_maps_of_residues(model):
    for name in ("bert", "t5"):
        features = contacts.attention_features(model(name), "PRTEI")
        assert features.shape == (model(name).config.num_heads, 5, 5)
        np.testing.assert_allclose(features, features.swapaxes(1, 2), atol=1e-6)
        # APC leaves rows that sum to 0.
        np.testing.assert_allclose(features.sum(-1), 0, atol=1e-5)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on two proteins, one without a known map."""
    score_cases.write_model(tmp_path / "m", "bert")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n>b\nPRTEINA\n")
    distances = np.full((28, 28), 20.0)
    distances[2, 9] = distances[3, 27] = distances[1, 14] = 5.0
    np.savez(tmp_path / "maps.npz", a=distances)

    def call(*arguments):
        return cli.main(["contacts", "-i", "x.fasta", "-m", "m", *arguments])

    return call


def test_weights_are_fitted_and_used(run, model, capsys):
    assert run("--method", "attention", "--fit", "maps.npz", "-o", "w.npz") == 3
    assert "Without known contacts: 1 (b)" in capsys.readouterr().err
    weights = contacts.load("w.npz")
    arguments = ("--method", "attention", "--weights", "w.npz")
    assert run(*arguments, "-o", "out.npz", "--compare", "maps.npz") == 3
    assert "long P@L/5: " in capsys.readouterr().out
    features = contacts.attention_features(model("bert"), "PRTEINA")
    with np.load("out.npz") as file:
        assert file["a"].shape == (28, 28)
        np.testing.assert_allclose(file["b"], weights(features), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "attention"], "needs --weights NPZ"),
        (["--weights", "maps.npz"], "--weights is for --method attention"),
        (
            ["--method", "attention", "--weights", "maps.npz"],
            "maps.npz: not an npz wit",
        ),
        (["--compare", "x.fasta"], "x.fasta: not an npz file of arrays.\n"),
        (["--compare", "one.npy"], "one.npy: not an npz file"),
        (["--compare", "empty.npz"], "empty.npz: not an npz file"),
        (["--compare", "cut.npz"], "cut.npz: not an npz file"),
        (
            ["--method", "attention", "--weights", "cut.npz"],
            "cut.npz: not an npz with coefficients",
        ),
    ],
)
def test_mistakes_are_one_line(run, arguments, words, capsys):
    np.save("one.npy", np.eye(3))
    pathlib.Path("empty.npz").touch()
    pathlib.Path("cut.npz").write_bytes(pathlib.Path("maps.npz").read_bytes()[:99])
    assert run("-o", "out.npz", *arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_known_contacts_are_not_overwritten(run, capsys):
    before = pathlib.Path("maps.npz").read_bytes()
    arguments = ("--method", "attention", "--fit", "maps.npz", "--overwrite")
    assert run(*arguments, "-o", "maps.npz") == 2
    assert "maps.npz is an input too" in capsys.readouterr().err
    assert pathlib.Path("maps.npz").read_bytes() == before


def test_contacts_saved_as_floats_are_not_read_as_distances():
    with pytest.raises(ValueError, match="map 'a' has the type float64"):
        contact_maps.known_contacts(np.eye(7), 7, "the map 'a'")
