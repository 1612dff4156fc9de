"""Other packages read our embedding files.

They need another Python or other versions than the tests' environment has, so these
tests are skipped there; `test_embed_files.py` holds the same by the readers' rules.
"""

import hashlib

import numpy as np
import pytest

from cases.embed_cases import embed_into


def test_protspace_loads_vectors_per_protein(encoder, fasta_file, proteins, tmp_path):
    h5 = pytest.importorskip("protspace.data.loaders.h5", exc_type=ImportError)
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", per_protein=True)
    loaded = h5.load_h5([path])
    assert loaded.name == encoder.name
    right = encoder.embed(list(proteins.values()), pool="mean")
    order = [loaded.headers.index(name) for name in proteins]
    np.testing.assert_allclose(loaded.data[order], right, rtol=0, atol=1e-6)


def test_biotrainer_loads_and_filters(encoder, fasta_file, proteins, tmp_path):
    h5_files = pytest.importorskip("biotrainer_core.h5_files", exc_type=ImportError)
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", key="biotrainer")
    loaded = h5_files.read_id2emb(path)
    for residues in proteins.values():
        key = hashlib.sha256(f"{residues}_{len(residues)}".encode()).hexdigest()
        assert loaded[key].shape == (len(residues), encoder.d_model)
    some = tmp_path / "some.fasta"
    name, residues = next(iter(proteins.items()))
    some.write_text(f">{name}\n{residues}\n")
    kept = tmp_path / "kept.h5"
    assert h5_files.filter_h5_with_fasta(path, some, kept) == 1
    assert len(h5_files.read_id2emb(kept)) == 1
