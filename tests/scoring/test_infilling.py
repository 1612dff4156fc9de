"""In-fill. Oracle: the log probabilities of a scorer, residue by residue."""

import numpy as np
import pytest

from prottrans_jax.scoring import infilling, scorers


def test_marks_are_filled_from_the_known_residues(model):
    scorer = scorers.Scorer(model("bert"))
    (filled,) = infilling.fill(scorer, ["M?T_Y"], top=3)
    assert [x.position for x in filled] == [2, 4]
    rows = scorer.masked([scorers.Masks(b"MATAY", (1, 3))])[0]
    for place, row in zip(filled, rows, strict=True):
        order = np.argsort(-row)[:3]
        assert place.residues == "".join(scorers.LETTERS[i] for i in order)
        np.testing.assert_allclose(place.probabilities, np.exp(row[order]), rtol=1e-5)


def test_the_decoder_of_t5_sees_what_was_filled_before(model):
    scorer = scorers.Scorer(model("t5"))
    (filled,) = infilling.fill(scorer, ["M<mask>TXY"])
    first, second = filled
    protein = f"M{first.residues}TXY".encode()
    (rows,) = scorer.masked([scorers.Masks(protein, (3,))])
    assert second.residues == scorers.LETTERS[int(rows[0].argmax())]
    assert second.probabilities[0] == pytest.approx(np.exp(rows[0].max()), rel=1e-5)


def test_only_sequence_lines_lose_their_marks(tmp_path):
    source = tmp_path / "a.fasta"
    source.write_text(">P1_HUMAN what?\nMK?_A\n<mask>W\n")
    (tmp_path / "copies").mkdir()
    copy = infilling.unmarked_copy(source, tmp_path / "copies")
    assert copy.read_text().rstrip("\n") == ">P1_HUMAN what?\nMKXXA\nXW"


def test_a_discriminator_is_refused(model):
    with pytest.raises(ValueError, match="Take its generator"):
        infilling.fill(scorers.Scorer(model("discriminator")), ["M?"])
