"""Log probabilities of every family. Oracle: Hugging Face in torch, float32.

`expect_scores.py` computed them, one mask and one protein at a time, without padding.
"""

import pathlib

import numpy as np
import pytest

from cases import score_cases
import prottrans_jax
from prottrans_jax.scoring import likelihoods, scorers

_EXPECTED = np.load(pathlib.Path(__file__).with_name("expected_scores.npz"))
_TOLERANCE = dict(rtol=0, atol=1e-5)


def _expected(name, kind):
    count = len(score_cases.PROTEINS)
    return [_EXPECTED[f"{name}/{kind}/{k}"] for k in range(count)]


@pytest.mark.parametrize(
    ("name", "likelihood"),
    [
        ("bert", "masked"),
        ("albert", "masked"),
        ("generator", "masked"),
        ("t5", "denoising"),
        ("t5", "spans"),
        ("xlnet", "permutation"),
        ("xlnet", "left-to-right"),
        ("transformer_xl", "left-to-right"),
    ],
)
def test_log_probabilities_are_those_of_hugging_face(model, name, likelihood):
    scorer = scorers.Scorer(model(name), likelihood)
    ours = scorer.log_probabilities(score_cases.PROTEINS)
    for matrix, expected in zip(ours, _expected(name, likelihood), strict=True):
        np.testing.assert_allclose(matrix, expected, **_TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "albert", "generator", "t5"])
def test_one_pass_gives_hugging_face_s_logits_without_masks(model, name):
    scorer = scorers.Scorer(model(name))
    ours = scorer.log_probabilities(score_cases.PROTEINS, one_pass=True)
    for matrix, expected in zip(ours, _expected(name, "one pass"), strict=True):
        np.testing.assert_allclose(matrix, expected, **_TOLERANCE)


def test_logits_of_the_discriminator_are_those_of_hugging_face(model):
    ours = scorers.Scorer(model("discriminator")).logits(score_cases.PROTEINS)
    for logits, expected in zip(
        ours, _expected("discriminator", "replaced"), strict=True
    ):
        np.testing.assert_allclose(logits[:, 0], expected, **_TOLERANCE)


def test_two_hidden_residues_do_not_see_each_other(model):
    """One of them may be anything: the other's prediction is the same."""
    for name in ("bert", "xlnet"):
        scorer = scorers.Scorer(model(name))
        items = [scorers.Masks(x, (1, 3)) for x in (b"MKTAY", b"MCTAY")]
        first, second = scorer.masked(items)
        np.testing.assert_allclose(first, second, **_TOLERANCE)
        other, _ = scorer.masked([scorers.Masks(b"MKTAW", (1, 3)), items[0]])
        assert np.abs(other - first).max() > 0.01


def test_memories_continue_a_protein_over_its_parts(model, tmp_path):
    """With memories of two parts, the whole protein is seen: no cut is noticed."""
    whole = scorers.Scorer(model("transformer_xl"))
    score_cases.write_model(tmp_path / "m", "transformer_xl", mem_length=6)
    parts = scorers.Scorer(prottrans_jax.load_model(tmp_path / "m", dtype="float32"))
    protein = "MKTAYIAKQRW"  # 12 tokens: a part, and another with its memories.
    (expected,) = whole.log_probabilities([protein])
    (matrix,) = parts.log_probabilities([protein])
    np.testing.assert_allclose(matrix, expected, **_TOLERANCE)


def test_memories_are_limited_to_their_length(model, tmp_path):
    score_cases.write_model(tmp_path / "m", "transformer_xl", mem_length=4)
    scorer = scorers.Scorer(prottrans_jax.load_model(tmp_path / "m", dtype="float32"))
    # Parts of 4 tokens, 2 layers: the fourth part sees the second through the memories
    # of the third, but not the first, which holds the changed residue.
    first, second = scorer.log_probabilities(["MKTAYIAKQRWSDEFG", "WKTAYIAKQRWSDEFG"])
    assert np.abs(first[9] - second[9]).max() > 1e-3
    np.testing.assert_allclose(first[13:], second[13:], **_TOLERANCE)


def test_a_model_without_the_head_says_what_is_missing(tmp_path):
    score_cases.write_model(tmp_path / "m", "t5", num_decoder_layers=0)
    model = prottrans_jax.load_model(tmp_path / "m")
    with pytest.raises(ValueError, match=r"encoder only.* prot_t5_xl_u50"):
        likelihoods.choose(model)
    score_cases.write_model(tmp_path / "n", "bert", lm_head=False)
    with pytest.raises(ValueError, match="no head that predicts residues"):
        likelihoods.choose(prottrans_jax.load_model(tmp_path / "n"))


def test_an_unknown_likelihood_lists_those_of_the_model(model):
    with pytest.raises(ValueError, match=r"no likelihood 'masked'. It has denoising"):
        likelihoods.choose(model("t5"), "masked")
