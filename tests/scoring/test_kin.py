"""Models that users bring: other vocabularies, classifiers, encoders alone."""

import json

import numpy as np
import pytest

from cases import score_cases
import prottrans_jax
from prottrans_jax.scoring import scorers

# Another order of the residues, as AntiBERTy has, and no pieces for U, Z, O and B.
_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWYX")


def test_a_bert_with_another_order_of_residues_is_scored_by_its_own_ids(tmp_path):
    score_cases.write_model(tmp_path / "m", "bert")
    (tmp_path / "m" / "vocabulary.json").unlink()
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(_PIECES) + "\n")
    model = prottrans_jax.load_model(tmp_path / "m", dtype="float32")
    scorer = scorers.Scorer(model)
    (logits,) = scorer.logits(["PRTE"])
    (ours,) = scorer.amino_acid_logits(["PRTE"])
    np.testing.assert_array_equal(ours, logits[:, 5:25])


def test_a_gated_t5_with_its_own_vocabulary_is_scored(tmp_path):
    """As Ankh: sentinels after the residues, GELU with a gate, own table of logits."""
    score_cases.write_model(
        tmp_path / "m", "t5", mlp_activations=("gelu", "linear"), tie_embeddings=False
    )
    pieces = ["<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWYX", "<extra_id_0>"]
    content = {
        "name": "Own",
        "pieces": {piece: i for i, piece in enumerate(pieces)},
        "before_residues": [],
        "after_residues": [1],
    }
    (tmp_path / "m" / "vocabulary.json").write_text(json.dumps(content))
    model = prottrans_jax.load_model(tmp_path / "m", dtype="float32")
    assert model.vocabulary.sentinel_id(0) == 24
    scorer = scorers.Scorer(model, "spans")
    (matrix,) = scorer.log_probabilities(["PRTE"])
    assert matrix.shape == (4, 20)
    assert np.exp(matrix).sum(-1).max() < 1  # Other pieces have the rest.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prot_bert_ss3", "cannot score proteins: the checkpoint has no head"),
        (
            "prot_t5_half_enc",
            "an encoder only, and the residues are predicted by the d",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_scored_says_what_is_missing(shared, name, words):
    named = "prot_bert" if "bert" in name else "prot_t5"
    folder = shared / "data/interop/hf_tiny" / name
    model = prottrans_jax.load_model(folder, vocabulary=named)
    with pytest.raises(ValueError, match=words):
        scorers.Scorer(model)


def test_a_model_whose_ids_are_unknown_asks_for_its_tokenizer(tmp_path):
    score_cases.write_model(tmp_path / "m", "bert")
    (tmp_path / "m" / "vocabulary.json").unlink()
    with pytest.raises(ValueError, match="--vocabulary FILE"):
        scorers.Scorer(prottrans_jax.load_model(tmp_path / "m"))


def test_logits_of_residues_are_those_of_hugging_face(shared):
    folder = shared / "data/interop/hf_tiny/prot_bert"
    model = prottrans_jax.load_model(folder, dtype="float32")
    expected = np.load(folder / "expected.npz")
    row, length = expected["input_ids"][1], expected["attention_mask"][1].sum()
    protein = model.vocabulary.decode(row[:length])
    (logits,) = scorers.Scorer(model).logits([protein])
    theirs = expected["logits"][1, 1 : length - 1]
    np.testing.assert_allclose(logits, theirs, atol=2e-5)
