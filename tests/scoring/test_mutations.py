"""Mutations as text: positions from 1, and errors that say what stands there."""

import pytest

from prottrans_jax.scoring import mutations

_WILD_TYPE = b"MKTAYXA"


def test_mutations_of_a_variant_change_its_residues():
    parsed = mutations.parse("M1A:y5w", _WILD_TYPE, "here")
    assert parsed == (mutations.Mutation("M", 1, "A"), mutations.Mutation("Y", 5, "W"))
    assert mutations.apply(parsed, _WILD_TYPE) == b"AKTAWXA"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("K1A", "position 1 of the protein is M, not K (positions 1 to 6: MKTAYX)"),
        ("A8C", "A8C: position 8 is outside the protein, which has positions 1 to 7"),
        ("M0A", "position 0 is outside"),
        ("M1Z", "M1Z: 'Z' is not one of the 20 amino acids"),
        ("M1del", "'DEL' is not one of the 20"),
        ("X6A", "X6A: X is none of the 20 amino acids"),
        ("M1A:M1C", "M1A:M1C changes position 1 more than once"),
        ("p.Met1Ala", "'p.Met1Ala' is not a substitution"),
        ("", "'' is not a substitution"),
    ],
)
def test_a_mutation_that_does_not_fit_says_what_stands_there(text, words):
    with pytest.raises(ValueError) as error:
        mutations.parse(text, _WILD_TYPE, "variants.csv:7")
    assert str(error.value).startswith("variants.csv:7: ") and words in str(error.value)


def test_all_single_substitutions_leave_out_unknown_residues():
    every = mutations.all_single(b"MXK")
    assert len(every) == 2 * 19
    assert {x.position for x in every} == {1, 3}
    assert all(x.wild_type != x.mutant for x in every)
