"""Prepared folders as a SeqIO data source."""

from collections.abc import Iterator
import contextlib
import contextvars
import os

import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.data import random_bits
from prottrans_jax.data.records import corpora, store
from prottrans_jax.data.rows import permutation

SPLITS = ("train", "validation")
_READ_AHEAD_RECORDS = 256
_READ_AHEAD = 2  # batches of _READ_AHEAD_RECORDS
_default_data_dir: contextvars.ContextVar[str | os.PathLike | None] = (
    contextvars.ContextVar("default_data_dir", default=None)
)


@contextlib.contextmanager
def default_data_dir(data_dir: str | os.PathLike | None) -> Iterator[None]:
    """Sets the folder for sources opened without one, e.g. by SeqIO's mixing rates."""
    token = _default_data_dir.set(data_dir)
    try:
        yield
    finally:
        _default_data_dir.reset(token)


class RecordSource(seqio.DataSource):
    """Prepared records of a corpus, opened on first use.

    Examples are {"id": string, "sequence": string of residues}. Random access allows
    any number of shards, and shuffling of the whole split instead of a buffer.
    Registering a task needs no data: the folder is looked up on use, in the `data_dir`
    of `RowLoader` or in PROTTRANS_DATA_DIR.
    """

    def __init__(self, corpus: str, splits: tuple[str, ...] = SPLITS):
        self.corpus = corpus
        super().__init__(
            splits=splits, caching_permitted=True, performs_internal_shuffling=True
        )

    def open(self, data_dir: str | os.PathLike | None = None) -> store.RecordFolder:
        """The prepared folder; see `corpora.find` and `default_data_dir`."""
        return store.open(
            corpora.find(self.corpus, data_dir or _default_data_dir.get())
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """True: a shard is every n-th record."""
        return True

    def list_shards(self, split: str) -> list[str]:
        """Files of the split."""
        return [s.file for s in self.open().split(split).info.shards]

    def num_input_examples(self, split: str) -> int | None:
        """Records of the split; None if the corpus is not prepared yet."""
        try:
            return self.open().split(split).num_records
        except store.DamageError:
            raise
        except ValueError:
            return None

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: object,
    ) -> tf.data.Dataset:
        """Records of a split, or of one shard (every n-th record), as tf.data."""
        opened = self.open().split(split)
        key = random_bits.key(
            int(seed if seed is not None else np.random.randint(2**31))
        )

        def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if shuffle:
                positions = permutation.permute(positions, opened.num_records, key)
            # One pass; ids() and read() would decompress the records twice.
            reading = opened.begin(positions)
            names, residues = zip(*reading.records(), strict=True)
            return np.array(names, object), np.array(residues, object)

        dataset = tf.data.Dataset.range(opened.num_records)
        if shard_info:
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        dataset = dataset.batch(_READ_AHEAD_RECORDS)
        dataset = dataset.map(
            lambda p: tf.numpy_function(read, [p], (tf.string, tf.string)),
            num_parallel_calls=_READ_AHEAD,
            deterministic=True,
        ).unbatch()
        return dataset.map(
            lambda name, residues: {
                "id": tf.ensure_shape(name, []),
                "sequence": tf.ensure_shape(residues, []),
            }
        )
