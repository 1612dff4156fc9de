"""A small prepared corpus, made once."""

import numpy as np
import pytest

from prottrans_jax.data.records import store


def make_examples(count, seed, longest=150):
    generator = np.random.default_rng(seed)
    for i in range(count):
        length = int(generator.integers(1, longest))
        yield (
            f"P{seed}_{i}",
            "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWYX"), length)),
        )


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory):
    """Folder with 211 + 90 train records in two shards and 23 of validation."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    with store.Writer(folder, name="toy") as writer:
        writer.add_shard("train", make_examples(211, 1))
        writer.add_shard("train", make_examples(90, 2))
        writer.add_shard("validation", make_examples(23, 3))
    return folder


@pytest.fixture(scope="session")
def other_corpus(tmp_path_factory):
    """Folder with 40 train records and 10 of validation, other than `toy_corpus`."""
    folder = tmp_path_factory.mktemp("data") / "other"
    with store.Writer(folder, name="other") as writer:
        writer.add_shard("train", make_examples(40, 4, longest=60))
        writer.add_shard("validation", make_examples(10, 5))
    return folder
