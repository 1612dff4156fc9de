"""Batches of any SeqIO task from `seqio.get_dataset`, for quick starts."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import itertools
from typing import Any

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax import differences
from prottrans_jax.data.seqio import feature_converters


class StreamLoader:
    """The interface of `RowLoader` over `seqio.get_dataset`.

    For any task or mixture with inputs and targets. Its limits, also logged as a
    warning: only ascending order is fast; a restart streams again from the beginning;
    every host streams everything and keeps its own rows; the order depends on the
    version of TensorFlow; SeqIO's packing leaves a fifth of a row empty.
    """

    unigram_entropy = float("nan")

    def __init__(
        self,
        task: str,
        split: str = "train",
        *,
        batch_size: int,
        feature_lengths: Mapping[str, int] | None = None,
        pack: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        num_epochs: int | None = None,
    ):
        """Arguments as for `RowLoader`."""
        self.batch_size = batch_size
        provider = seqio.get_mixture_or_task(task)
        self._converter = feature_converters.converter_for(provider, pack)
        self.vocab_size = max(
            feature.vocabulary.vocab_size
            for feature in provider.output_features.values()
        )
        self._lengths = dict(
            feature_lengths or dict.fromkeys(self._converter.TASK_FEATURES, 512)
        )
        self._settings: dict[str, Any] = {
            "task": task,
            "split": split,
            "batch_size": batch_size,
            "feature_lengths": self._lengths,
            "pack": pack,
            "shuffle": shuffle,
            "seed": seed,
            "num_epochs": num_epochs,
        }
        self._next = 0
        self._stream: Iterator[dict[str, np.ndarray]] | None = None
        self._last: tuple[int, dict[str, np.ndarray]] | None = None
        self._num_batches: int | None = None
        logging.warning(
            "StreamLoader: %s is streamed in SeqIO's own order. A restart replays the "
            "stream from the beginning, every host reads all of it, and packed rows "
            "are about 77 %% full. RowLoader over prepared records has no such limits.",
            task,
        )

    @property
    def num_batches(self) -> int | None:
        """Batches of a finite stream, counted by one pass over it; else None."""
        if self._settings["num_epochs"] is None:
            return None
        if self._num_batches is None:
            self._num_batches = sum(1 for _ in self._open())
        return self._num_batches

    @property
    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each feature of a global batch."""
        lengths = self._converter.get_model_feature_lengths(self._lengths)
        return {name: (self.batch_size, length) for name, length in lengths.items()}

    def batch(
        self, index: int, rows: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> dict[str, np.ndarray]:
        """Part of batch `index`; going back streams again from the start.

        Raises:
          IndexError: the stream ended before this batch.
        """
        if self._last is None or index != self._last[0]:
            if self._stream is None or index < self._next:
                if self._next:
                    logging.warning("StreamLoader: streaming again from the start.")
                self._stream, self._next = self._open(), 0
            skipped = index - self._next
            if skipped:
                logging.warning("StreamLoader: skipping %d batches.", skipped)
            batch = next(itertools.islice(self._stream, skipped, None), None)
            if batch is None:
                self._stream = None
                raise IndexError(f"the stream ended before batch {index}.")
            self._last, self._next = (index, batch), index + 1
        selection = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
        return {name: value[selection] for name, value in self._last[1].items()}

    def state(self, next_index: int) -> dict[str, Any]:
        """What `restore` needs; plain JSON."""
        return {"next_index": next_index, **self._settings}

    def restore(self, state: Mapping[str, Any]) -> int:
        """Returns the index of the next batch; reading it replays all earlier ones.

        Raises:
          ValueError: `state` is of another stream; lists the differences.
        """
        saved = {name: state.get(name) for name in self._settings}
        if lines := differences.lines(saved, self._settings):
            raise ValueError(
                "the saved run streamed something else (saved -> now):\n  "
                + "\n  ".join(lines)
            )
        self._stream, self._next, self._last = None, 0, None
        return int(state["next_index"])

    def example_ids(self, index: int) -> list[str]:
        """Empty: SeqIO drops ids when it makes rows."""
        return []

    def describe(self) -> dict[str, Any]:
        """The settings only: sizes are unknown until the stream is read."""
        return dict(self._settings)

    def _open(self) -> Iterator[dict[str, np.ndarray]]:
        # TensorFlow would allocate the accelerator's memory that JAX needs.
        with contextlib.suppress(RuntimeError):  # TensorFlow uses it already
            tf.config.set_visible_devices([], "GPU")
        dataset = seqio.get_dataset(
            self._settings["task"],
            self._lengths,
            self._converter,
            dataset_split=self._settings["split"],
            shuffle=self._settings["shuffle"],
            num_epochs=self._settings["num_epochs"],
            seed=self._settings["seed"],
        )
        finite = self._settings["num_epochs"] is not None
        dataset = dataset.batch(self.batch_size, drop_remainder=not finite)
        for batch in dataset.as_numpy_iterator():
            missing = self.batch_size - len(next(iter(batch.values())))
            if missing:
                # As in RowLoader, empty rows fill up the last batch.
                batch = {k: np.pad(v, ((0, missing), (0, 0))) for k, v in batch.items()}
            yield batch
