"""Batches of any SeqIO task by plain `seqio.get_dataset`, for quick starts."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import itertools
from typing import Any

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.data.seqio import feature_converters


class StreamLoader:
    """The `.batch` surface of `RowLoader` over `seqio.get_dataset`.

    For any task or mixture with inputs and targets. Its limits, said aloud when it is
    made: only rising order is quick; a restart streams from the beginning again
    up to where it was; every host streams everything and keeps its rows; the order
    holds for this version of TensorFlow; SeqIO's packing leaves a fifth of a row empty.

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
        """Arguments as of `RowLoader`."""
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
            "stream up to where it was, every host reads all of it, and packed rows "
            "are about 77 %% full. RowLoader over prepared records has no such limits.",
            task,
        )

    @property
    def num_batches(self) -> int | None:
        """Batches of a finite stream, found by going through it once; else None."""
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
        """Part of batch `index`; an earlier one than the last streams it all again.

        Raises:
          IndexError: the stream ended before.
        """
        if self._last is None or index != self._last[0]:
            if self._stream is None or index < self._next:
                if self._next:
                    logging.warning("StreamLoader: streaming again from the start.")
                self._stream, self._next = self._open(), 0
            skipped = index - self._next
            if skipped:
                logging.warning("StreamLoader: passing over %d batches.", skipped)
            found = next(itertools.islice(self._stream, skipped, None), None)
            if found is None:
                self._stream = None
                raise IndexError(f"the stream ended before batch {index}.")
            self._last, self._next = (index, found), index + 1
        wanted = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
        return {name: value[wanted] for name, value in self._last[1].items()}

    def state(self, next_index: int) -> dict[str, Any]:
        """What `restore` needs; plain JSON."""
        return {"next_index": next_index, **self._settings}

    def restore(self, state: Mapping[str, Any]) -> int:
        """Index of the next batch; its `.batch` replays all before it.

        Raises:
          ValueError: `state` is of another stream: what differs.
        """
        differences = [
            f"{name}: saved {state.get(name)!r}, now {value!r}"
            for name, value in self._settings.items()
            if state.get(name) != value
        ]
        if differences:
            raise ValueError(
                "the saved run streamed something else:\n  " + "\n  ".join(differences)
            )
        self._stream, self._next, self._last = None, 0, None
        return int(state["next_index"])

    def example_ids(self, index: int) -> list[str]:
        """None: SeqIO drops ids when it makes rows."""
        return []

    def describe(self) -> dict[str, Any]:
        """Settings only: nothing is known of a stream before it is read."""
        return dict(self._settings)

    def _open(self) -> Iterator[dict[str, np.ndarray]]:
        # TensorFlow would take the accelerator's memory away from JAX.
        with contextlib.suppress(RuntimeError):  # it has begun to use it
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
        for found in dataset.as_numpy_iterator():
            missing = self.batch_size - len(next(iter(found.values())))
            if missing:
                # As RowLoader: the last batch is filled up with empty rows.
                found = {k: np.pad(v, ((0, missing), (0, 0))) for k, v in found.items()}
            yield found
