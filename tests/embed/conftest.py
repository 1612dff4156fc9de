"""A tiny random model in Hugging Face's layout, and proteins to embed."""

import pytest

from cases import embed_cases
import prottrans_jax


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A T5 of 3 layers, with decoder, written by `huggingface.write`."""
    return embed_cases.make_model(tmp_path_factory.mktemp("models") / "tiny_t5", seed=0)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    """The same shape, other weights."""
    return embed_cases.make_model(tmp_path_factory.mktemp("models") / "tiny_t5", seed=1)


@pytest.fixture(scope="session")
def encoder(model_folder):
    return prottrans_jax.load_encoder(model_folder, dtype="float32")


@pytest.fixture(scope="session")
def wide_encoder(tmp_path_factory):
    """Sizes at which a CPU with x86 kernels packs proteins into rows."""
    sizes = {"d_model": 32, "d_ff": 64, "num_heads": 3, "head_dim": 32}
    folder = tmp_path_factory.mktemp("models") / "wide_t5"
    made = embed_cases.make_model(folder, seed=0, **sizes)
    return prottrans_jax.load_encoder(made, dtype="float32")


@pytest.fixture
def proteins():
    """40 proteins by id, of 1 to 89 residues."""
    return embed_cases.random_proteins(40)


@pytest.fixture
def fasta_file(tmp_path, proteins):
    return embed_cases.write_fasta(tmp_path / "proteins.fasta", proteins)
