"""Tasks over a corpus at a given folder, and loaders of small rows."""

import numpy as np
import seqio

from prottrans_jax.data.records import store
from prottrans_jax.data.rows import loader
from prottrans_jax.data.seqio import preprocessors, record_source
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

LENGTHS = {"inputs": 64, "targets": 64}


class FolderSource(record_source.RecordSource):
    """A corpus at a given folder."""

    def __init__(self, folder):
        super().__init__(folder.name)
        self._folder = folder

    def open(self, data_dir=None):
        return store.open(self._folder)


def make_task(folder, name, corrupt=None):
    corrupt = corrupt or preprocessors.iid_denoise()
    return seqio.Task(
        name,
        source=FolderSource(folder),
        preprocessors=preprocessors.pretraining(corrupt),
        output_features=preprocessors.output_features(corrupt),
    )


def make_loader(folder, batch_size=6, task="fasta_iid_denoise", **options):
    options = {"feature_lengths": LENGTHS, "block_records": 50, "seed": 3, **options}
    return loader.RowLoader(
        task, options.pop("split", "train"), batch_size=batch_size, data_dir=folder,
        **options,
    )  # fmt: skip


def assert_equal(batch, expected):
    assert batch.keys() == expected.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)
