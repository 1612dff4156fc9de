"""Our rows in T5X: functions for `t5x.train.train`, bound by the leaves of gin/t5x.

T5X asks for its data with a `DatasetConfig` and the number of the host's shard. These
functions answer with the rows of `RowLoader` instead of `seqio.get_dataset`. So batch b
is the same in T5X and in our trainer, and on any number of hosts. T5X itself is not
imported.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
from typing import Any, ClassVar, Protocol

from clu.data import dataset_iterator
from etils import epath
import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.data.rows import loader as loader_lib

# Features of `seqio.EncDecFeatureConverter` with packing, which T5X's models read.
FEATURES = (
    "encoder_input_tokens",
    "encoder_positions",
    "encoder_segment_ids",
    "decoder_input_tokens",
    "decoder_loss_weights",
    "decoder_positions",
    "decoder_segment_ids",
    "decoder_target_tokens",
)


class DatasetConfig(Protocol):
    """What is read of T5X's `DatasetConfig`, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    mixture_or_task_name: str | seqio.Task | seqio.Mixture
    task_feature_lengths: Mapping[str, int]
    split: str
    batch_size: int
    shuffle: bool
    pack: bool
    seed: int | None


def train_batches(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: object = None,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    data_dir: str | os.PathLike | None = None,
    long_sequences: str = "split",
) -> "RowIterator":
    """As T5X's `utils.get_dataset`: for `train.get_dataset_fn`.

    Args:
      cfg: T5X's `DatasetConfig`.
      shard_id: Number of this host's part of each batch.
      num_shards: Number of parts.
      feature_converter_cls: Not used: rows have the features of T5X's models already.
      num_epochs: As for `RowLoader`.
      continue_from_last_checkpoint: Not used; T5X calls `RowIterator.restore`.
      data_dir: Prepared records; see `corpora.find`.
      long_sequences: As for `RowLoader`.

    Raises:
      ValueError: As for `RowLoader`; or `cfg` has no seed, or a batch size that the
        shards do not divide.
    """
    del feature_converter_cls, continue_from_last_checkpoint
    rows = _rows_of_shard(cfg, shard_id, num_shards)
    loader = _loader(cfg, num_epochs, data_dir=data_dir, long_sequences=long_sequences)
    return RowIterator(loader, rows)


def eval_batches(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int,
    feature_converter_cls: object = None,
    *,
    data_dir: str | os.PathLike | None = None,
    long_sequences: str = "split",
) -> dict[str, tf.data.Dataset]:
    """As T5X's `utils.get_training_eval_datasets`, for `train_eval_get_dataset_fn`.

    Args:
      cfg: T5X's `DatasetConfig`.
      shard_id: Number of this host's part of each batch.
      num_shards: Number of parts.
      eval_steps: Maximum number of batches. A shorter split is read once; empty rows
        fill up its last batch.
      feature_converter_cls: Not used.
      data_dir: Prepared records; see `corpora.find`.
      long_sequences: As for `RowLoader`.

    Returns:
      The batches of each task of the mixture, by its name.

    Raises:
      ValueError: As for `train_batches`.
    """
    del feature_converter_cls
    rows = _rows_of_shard(cfg, shard_id, num_shards)
    datasets = {}
    for task in seqio.get_subtasks(_provider(cfg)):
        loader = _loader(
            dataclasses.replace(cfg, mixture_or_task_name=task.name),
            num_epochs=1,
            data_dir=data_dir,
            long_sequences=long_sequences,
        )
        datasets[task.name] = _dataset(loader, rows, eval_steps)
    return datasets


class RowIterator(dataset_iterator.DatasetIterator):
    """The batches of a `RowLoader`, or one shard of each, for T5X's training loop.

    Its state is that of the loader: one JSON file of the number of the next row, equal
    on all hosts.
    """

    def __init__(self, loader: loader_lib.RowLoader, rows: slice):
        self._loader = loader
        self._rows = rows
        self._next = 0

    def __next__(self) -> dict[str, np.ndarray]:
        num_batches = self._loader.num_batches
        if num_batches is not None and self._next >= num_batches:
            raise StopIteration
        batch = _features(self._loader.batch(self._next, self._rows))
        self._next += 1
        return batch

    def reset(self) -> None:
        """Goes back to the first batch."""
        self._next = 0

    @property
    def element_spec(self) -> dict[str, dataset_iterator.ArraySpec]:
        """Shapes and types of this host's part of a batch."""
        count = len(range(self._loader.batch_size)[self._rows])
        row = _features(self._loader.batch(0, slice(0, 1)))
        return {
            name: dataset_iterator.ArraySpec(x.dtype, (count, *x.shape[1:]))
            for name, x in row.items()
        }

    def save(self, filename: str | os.PathLike) -> None:
        """Writes the state; T5X does so with `SaveCheckpointConfig.save_dataset`."""
        state = json.dumps(self._loader.state(self._next))
        epath.Path(filename).write_text(state)

    def restore(self, filename: str | os.PathLike) -> None:
        """Continues after the batches that were taken before `save`.

        T5X's name of the file holds the number of shards. If they were others, the
        state of any of them is read: all are equal.

        Raises:
          FileNotFoundError: There is no state of any shard.
          ValueError: The state is of other rows; see `RowLoader.restore`.
        """
        path = epath.Path(filename)
        if not path.exists():
            path = _state_of_other_shards(path)
        self._next = self._loader.restore(json.loads(path.read_text()))


def _state_of_other_shards(path: epath.Path) -> epath.Path:
    # .../dataset/train_ds-000-of-001, or .../dataset/process_0-of-2/train_ds-000-of-002
    in_process = path.parent.name.startswith("process_")
    folder = path.parent.parent if in_process else path.parent
    places = [folder]
    if folder.is_dir():
        places += sorted(x for x in folder.iterdir() if x.is_dir())
    for place in places:
        for other in sorted(place.glob("train_ds-*-of-*")):
            return other
    raise FileNotFoundError(
        f"{path} does not exist, and {folder} holds no state of the data. Was the "
        "checkpoint saved with SaveCheckpointConfig.save_dataset = True?"
    )


def _provider(cfg: DatasetConfig) -> seqio.Task | seqio.Mixture:
    name = cfg.mixture_or_task_name
    return seqio.get_mixture_or_task(name) if isinstance(name, str) else name


def _rows_of_shard(cfg: DatasetConfig, shard_id: int, num_shards: int) -> slice:
    """Rows of a global batch that belong to one shard: a block, as in our trainer."""
    if cfg.batch_size % num_shards:
        raise ValueError(
            f"DatasetConfig.batch_size={cfg.batch_size} is not a multiple of the "
            f"{num_shards} shards. Change BATCH_SIZE."
        )
    count = cfg.batch_size // num_shards
    return slice(shard_id * count, (shard_id + 1) * count)


def _loader(
    cfg: DatasetConfig, num_epochs: int | None, **options: Any
) -> loader_lib.RowLoader:
    if cfg.seed is None:
        raise ValueError(
            "DatasetConfig.seed is None: T5X would draw one from the clock. Set a "
            "number; our trainer has RANDOM_SEED for the rows of training, and 0 for "
            "those of evaluation."
        )
    return loader_lib.RowLoader(
        cfg.mixture_or_task_name,
        cfg.split,
        batch_size=cfg.batch_size,
        feature_lengths=cfg.task_feature_lengths,
        pack=cfg.pack,
        shuffle=cfg.shuffle,
        seed=cfg.seed,
        num_epochs=num_epochs,
        **options,
    )


def _features(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in FEATURES}


def _dataset(
    loader: loader_lib.RowLoader, rows: slice, max_batches: int
) -> tf.data.Dataset:
    assert loader.num_batches is not None
    num_batches = min(loader.num_batches, max_batches)

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for index in range(num_batches):
            yield _features(loader.batch(index, rows))

    spec = RowIterator(loader, rows).element_spec
    return tf.data.Dataset.from_generator(
        generate,
        output_signature={
            name: tf.TensorSpec(x.shape, tf.as_dtype(x.dtype))
            for name, x in spec.items()
        },
    )
