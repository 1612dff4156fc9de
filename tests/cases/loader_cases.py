"""A `types.Loader` without records: rows are a function of (seed, index)."""

import numpy as np


class Rows:
    """Subclasses give `batch_size`, `vocab_size` and the features of a whole batch."""

    unigram_entropy = 2.5

    def __init__(self, seed=0, num_batches=None):
        self.num_batches = num_batches
        self._seed = seed

    def features(self, index, rng):
        """Features of batch `index`, each [rows, length], from a NumPy generator."""
        raise NotImplementedError

    def batch(self, index, rows=slice(None)):
        rng = np.random.default_rng((self._seed, index))
        return {
            name: value[rows] if value.dtype == np.float32 else value[rows].astype("i4")
            for name, value in self.features(index, rng).items()
        }

    def state(self, index):
        return {"next": index, "seed": self._seed}

    def restore(self, state):
        return state["next"]

    def example_ids(self, index):
        return [f"P{index}"]
