"""Jobs of a few small proteins: one call, one program, hardly any padding."""

import numpy as np
import pytest

from cases import embed_cases
import prottrans_jax

LENGTHS = (20, 35, 58, 90, 131)


@pytest.fixture
def proteins():
    generator = np.random.default_rng(7)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return {f"P{n}": "".join(generator.choice(letters, n)) for n in LENGTHS}


@pytest.fixture
def encoder(tmp_path):
    return prottrans_jax.load_encoder(embed_cases.make_model(tmp_path / "m", seed=0))


def test_a_few_small_proteins_have_three_percent_padding_at_most(
    encoder, proteins, tmp_path
):
    source = embed_cases.write_fasta(tmp_path / "x.fasta", proteins)
    report = embed_cases.embed(encoder, source, tmp_path / "x.h5")
    assert report.embedded == len(LENGTHS)
    assert 0.0 <= report.padding <= 0.03


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_proteins_of_a_small_job_have_the_vectors_that_they_have_alone(
    encoder, proteins, tmp_path, pool
):
    source = embed_cases.write_fasta(tmp_path / "x.fasta", proteins)
    options = {"per_residue": True, "per_protein": True, "output_dtype": "float32"}
    embed_cases.embed(encoder, source, tmp_path / "x.h5", pool=pool, **options)
    residues = embed_cases.read(tmp_path / "x.per_residue.h5")
    pooled = embed_cases.read(tmp_path / "x.per_protein.h5")
    for name, sequence in proteins.items():
        (alone,) = encoder.embed([sequence])
        np.testing.assert_allclose(residues[name], alone, rtol=0, atol=1e-5)
        expected = getattr(alone, pool)(axis=0)
        np.testing.assert_allclose(pooled[name], expected, rtol=0, atol=1e-5)
