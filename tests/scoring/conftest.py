import pytest

from cases import score_cases
import prottrans_jax


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Loads a model of `score_cases` by name, once."""
    loaded = {}

    def load(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp("scores") / name
            score_cases.write_model(folder, name)
            loaded[name] = prottrans_jax.load_model(folder, dtype="float32")
        return loaded[name]

    return load
