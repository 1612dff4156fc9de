"""Labelled proteins and splits."""

import numpy as np
import pytest

from prottrans_jax.downstream import labelled

SHAPE = labelled.Task("shape", "residue", ("H", "E", "C"), "accuracy")


def protein(labels, mask=None, split="train"):
    return labelled.LabelledProtein(
        "p", "MKV", np.asarray(labels), mask, split, "a.csv:2"
    )


def test_masked_residues_and_residues_without_class_do_not_count():
    mask = np.array([True, False, True])
    assert protein([0, 1, labelled.NO_CLASS], mask).counts.tolist() == [
        True,
        False,
        False,
    ]


def test_a_number_that_is_nan_does_not_count():
    assert protein(np.float32([0.5, np.nan, 1])).counts.tolist() == [True, False, True]


def test_an_unknown_split_is_named_with_those_that_there_are():
    proteins = labelled.LabelledSet(SHAPE, [protein([0, 1, 2]), protein([0, 1, 2])])
    with pytest.raises(ValueError, match="no split test; its splits: train"):
        proteins.split("test")
