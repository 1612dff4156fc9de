"""Scores from log probabilities. Oracle: sums by hand, and a loop without batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prottrans_jax.scoring import scorers

_A, _C, _P, _R = (scorers.LETTERS.index(x) for x in "ACPR")


def test_pseudo_perplexity_is_the_mean_over_known_residues(model):
    scorer = scorers.Scorer(model("bert"))
    (matrix,) = scorer.log_probabilities(["MKXWC"])
    (result,) = scorer.pseudo_perplexity(["MKXWC"])
    chosen = [
        matrix[i, scorers.LETTERS.index(x)] for i, x in enumerate("MKXWC") if i != 2
    ]
    assert result.scored == 4
    assert result.log_likelihood == pytest.approx(sum(chosen), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(-sum(chosen) / 4), rel=1e-6)


def test_a_protein_of_unknown_residues_has_no_perplexity(model):
    (result,) = scorers.Scorer(model("bert")).pseudo_perplexity(["XX"], one_pass=True)
    assert result.scored == 0 and math.isnan(result.perplexity)


def test_masked_log_probabilities_equal_a_loop_of_single_rows(model):
    bert = model("bert")
    row = [2, *bert.vocabulary.encode("PRTE"), 3]
    logits_of = jax.jit(lambda tokens: bert(tokens).logits)
    (matrix,) = scorers.Scorer(bert).log_probabilities(["PRTE"])
    for i in range(4):
        masked = list(row)
        masked[i + 1] = 4
        logits = np.asarray(logits_of(jnp.array([masked]))[0, i + 1], np.float64)
        normaliser = math.log(sum(math.exp(x) for x in logits))
        # The vocabulary's own order: A is 6, C is 23.
        np.testing.assert_allclose(matrix[i, _A], logits[6] - normaliser, atol=1e-5)
        np.testing.assert_allclose(matrix[i, _C], logits[23] - normaliser, atol=1e-5)


def test_masked_marginals_of_several_mutations_add_up(model):
    scorer = scorers.Scorer(model("bert"))
    (matrix,) = scorer.log_probabilities(["PRTE"])
    first = matrix[0, _A] - matrix[0, _P]
    second = matrix[1, _C] - matrix[1, _R]
    scores = scorer.variants("PRTE", ["P1A", "R2C", "P1A:R2C"])
    np.testing.assert_allclose(scores, [first, second, first + second], atol=1e-5)
    matrix = scorer.substitutions("PRTE")
    np.testing.assert_allclose(matrix[[0, 1], [_A, _C]], scores[:2], atol=1e-5)
    assert matrix[0, _P] == 0


def test_wild_type_marginals_come_from_one_pass(model):
    scorer = scorers.Scorer(model("t5"))
    (matrix,) = scorer.log_probabilities(["PRTE"], one_pass=True)
    scores = scorer.variants("PRTE", ["R2C"], "wild-type")
    np.testing.assert_allclose(scores, matrix[1, _C] - matrix[1, _R], atol=1e-6)


def test_a_left_to_right_model_scores_the_whole_variant(model):
    scorer = scorers.Scorer(model("transformer_xl"))
    wild_type, variant = scorer.pseudo_perplexity(["PRTE", "PCTE"])
    difference = variant.log_likelihood - wild_type.log_likelihood
    assert scorer.variants("PRTE", ["R2C"])[0] == pytest.approx(difference, abs=1e-5)
    matrix = scorer.substitutions("PRTE")
    assert matrix[1, _C] == pytest.approx(difference, abs=1e-5)
    # Later residues depend on the mutation, which wild-type marginals do not see.
    assert abs(scorer.variants("PRTE", ["R2C"], "wild-type")[0] - difference) > 1e-3


def test_the_discriminator_scores_the_mutated_residues(model):
    scorer = scorers.Scorer(model("discriminator"))
    wild_type, variant = scorer.logits(["PRTE", "ACTE"])
    expected = (wild_type - variant)[:2].sum()
    np.testing.assert_allclose(
        scorer.variants("PRTE", ["P1A:R2C"]), expected, atol=1e-6
    )
    with pytest.raises(ValueError, match="is a discriminator"):
        scorer.pseudo_perplexity(["PRTE"])


def test_batches_are_bounded_and_do_not_change_the_scores(model):
    wide, sizes = scorers.Scorer(model("bert")), []
    narrow = scorers.Scorer(model("bert"), max_tokens=24, on_rows=sizes.append)
    expected = wide.log_probabilities(["MKXWC", "PRTE"])
    ours = narrow.log_probabilities(["MKXWC", "PRTE"])
    assert sizes == [3, 3, 3]  # Rows of 8 tokens.
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("xlnet", lambda s: s.logits(["PR"]), "'left-to-right' has one"),
        ("bert", lambda s: s.variants("PR", ["P1A"], "mutant"), "'masked' and 'wild-"),
        ("bert", lambda s: s.log_probabilities(["P" * 39]), "positions for 38"),
        ("bert", lambda s: s.variants("PR", ["P1A", "R1A"]), "'R1A': R1A: position 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, name, call, words):
    with pytest.raises(ValueError, match=words):
        call(scorers.Scorer(model(name)))
