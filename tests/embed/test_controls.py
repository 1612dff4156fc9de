"""Encoders that know nothing, as controls of pre-trained ones."""

import jax
import numpy as np
import pytest

import prottrans_jax
from prottrans_jax.encoders import controls


def test_one_hot_vectors_mark_the_residue_and_other_letters_as_x():
    encoder = controls.one_hot()
    letters = "ACDEFGHIKLMNPQRSTVWY"
    np.testing.assert_array_equal(
        encoder.embed(letters + "XU")[:, :20][:20], np.eye(20)
    )
    np.testing.assert_array_equal(encoder.embed("XUA").argmax(1), [20, 20, 0])
    # Mean of a batch with rows of other lengths: composition of each protein.
    pooled = encoder.embed(["AAAC", "ACDEFGHIKL"], pool="mean")
    np.testing.assert_allclose(pooled[0, :2], [0.75, 0.25])
    assert pooled.shape == (2, 21)


def check_random_weights(trained):
    control = controls.random_weights(trained, seed=3)
    assert jax.tree.map(np.shape, control.params) == jax.tree.map(
        np.shape, trained.params
    )
    assert control.fingerprint != trained.fingerprint
    vectors = control.embed("MKTAYIAK")
    assert np.abs(vectors - trained.embed("MKTAYIAK")).max() > 1e-3
    again = controls.random_weights(trained, seed=3)
    np.testing.assert_array_equal(vectors, again.embed("MKTAYIAK"))
    other = controls.random_weights(trained, seed=4)
    assert other.fingerprint != control.fingerprint


def test_random_weights_keep_the_architecture_and_nothing_else(encoder):
    check_random_weights(encoder)


@pytest.mark.parametrize("name", ["prot_bert", "prot_xlnet"])
def test_every_family_has_random_weights(shared, name):
    folder = shared / "data/interop/hf_tiny" / name
    check_random_weights(prottrans_jax.load_encoder(folder, dtype="float32"))
