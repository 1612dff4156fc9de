"""SeqIO preprocessors of pre-training tasks: tokenize, cut to the row, corrupt.

  seqio.TaskRegistry.add(
      "my_iid_denoise",
      source=...,                        # examples {"sequence": string}
      preprocessors=preprocessors.pretraining(preprocessors.iid_denoise()),
      output_features=preprocessors.output_features(preprocessors.iid_denoise()),
  )

The corruptions are NumPy code in `data/corruption/`. SeqIO runs them on one example at
a time; the row loader takes them from a task's preprocessors and runs them on batches.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import (
    causal,
    iid_noise,
    masking,
    permuted,
    streams,
)
from prottrans_jax.data.corruption import span_corruption as span_corruption_lib
from prottrans_jax.data.rows import packing
from prottrans_jax.data.seqio import byte_vocabulary

_CROP = 0  # stream of an example's key
_CORRUPT = 1


def iid_denoise(**options: Any) -> "Corrupt":
    """ProtT5's corruption; see `iid_noise.IidDenoise` for options and an example."""
    return Corrupt(iid_noise.IidDenoise(**options))


def span_corruption(**options: Any) -> "Corrupt":
    """T5's span corruption; see `span_corruption.SpanCorruption`."""
    return Corrupt(span_corruption_lib.SpanCorruption(**options))


def masked_reconstruction(**options: Any) -> "Corrupt":
    """Loss at hidden positions only; see `iid_noise.MaskedReconstruction`."""
    return Corrupt(iid_noise.MaskedReconstruction(**options))


def masked_lm(**options: Any) -> "Corrupt":
    """For BERT, ALBERT and ELECTRA; see `masking.TokenMasking`."""
    return Corrupt(masking.TokenMasking(**options))


def permutation_lm(**options: Any) -> "Corrupt":
    """For XLNet; see `permuted.PermutationTargets`."""
    return Corrupt(permuted.PermutationTargets(**options))


def causal_lm(**options: Any) -> "Corrupt":
    """For Transformer-XL; see `causal.NextToken`."""
    return Corrupt(causal.NextToken(**options))


def pretraining(corrupt: "Corrupt") -> list[Callable[..., tf.data.Dataset]]:
    """Preprocessors of a pre-training task, as `RowLoader` expects them."""
    return [Tokenize(), seqio.CacheDatasetPlaceholder(required=False), corrupt]


def output_features(corrupt: "Corrupt") -> dict[str, seqio.Feature]:
    """Features of a pre-training task: ids, and one number per token."""
    corruption = corrupt.corruption
    vocabulary = byte_vocabulary.ByteTableVocabulary(corruption.vocabulary)
    has_eos = corruption.vocabulary.eos_id is not None
    numbers = seqio.PassThroughVocabulary(size=3)
    return {
        name: (
            seqio.Feature(vocabulary, add_eos=has_eos)
            if name in ("inputs", "targets")
            else seqio.Feature(numbers, add_eos=False, dtype=tf.as_dtype(field.dtype))
        )
        for name, field in task_features(corruption).items()
    }


def task_features(corruption: streams.Corruption) -> dict[str, streams.Field]:
    """Features of an example with one value per token, by their names in SeqIO."""
    return {
        field.task_feature: field
        for layout in corruption.layouts
        for field in layout.fields.values()
        if field.task_feature
    }


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """{"sequence": string} -> {"targets": ids of its residues}; no </s> yet."""

    output_features: Mapping[str, seqio.Feature] | None = None

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Maps the dataset. SeqIO sets `output_features`."""
        assert self.output_features is not None
        vocabulary = self.output_features["targets"].vocabulary

        def tokenize(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            rest = {k: v for k, v in example.items() if k != "sequence"}
            return {"targets": vocabulary.encode_tf(example["sequence"]), **rest}

        return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Corrupt:
    """A corruption as a SeqIO preprocessor; cuts sequences that are too long for a row.

    Such a sequence becomes several examples (`split`) or one random window (`crop`).
    Seeds come from SeqIO.
    """

    corruption: streams.Corruption
    long_sequences: str = "split"
    sequence_length: Mapping[str, int] | None = None

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Maps the dataset. SeqIO sets `sequence_length`; None means no limit."""
        limit = None
        layouts = self.corruption.layouts
        if self.sequence_length:
            limit = self.corruption.max_residues(
                *(self.sequence_length[layout.length] for layout in layouts)
            )
        fields = task_features(self.corruption)
        types = [tf.as_dtype(field.dtype) for field in fields.values()]

        def corrupt(targets: np.ndarray, seed: np.ndarray) -> list[np.ndarray]:
            key = random_bits.key(int(seed[0]), int(seed[1]))
            corrupted = self.corrupt_record(targets, key, limit)
            values = [
                stream[name].astype(field.dtype)
                for stream in corrupted
                for name, field in stream.layout.fields.items()
                if field.task_feature
            ]
            return [*values, *(stream.lengths for stream in corrupted)]

        @seqio.map_over_dataset(num_seeds=1)
        def one_record(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Any:
            out = tf.numpy_function(
                corrupt,
                [example["targets"], seed],
                [*types, *(tf.int64 for _ in layouts)],
            )
            others = {k: v for k, v in example.items() if k != "targets"}
            return tuple(tf.ensure_shape(o, [None]) for o in out), others

        def pieces(
            out: Sequence[tf.Tensor], others: Mapping[str, tf.Tensor]
        ) -> tf.data.Dataset:
            lengths = {
                field.task_feature: out[len(fields) + i]
                for i, layout in enumerate(layouts)
                for field in layout.fields.values()
            }
            parts = tf.data.Dataset.from_tensor_slices(
                {
                    name: tf.RaggedTensor.from_row_lengths(values, lengths[name])
                    for name, values in zip(fields, out, strict=False)
                }
            )
            return parts.map(lambda p: {**others, **p})

        return one_record(dataset).flat_map(pieces)

    def corrupt_record(
        self, residues: np.ndarray, key: np.ndarray, limit: int | None
    ) -> tuple[streams.Stream, ...]:
        """Cuts one record into pieces and corrupts them.

        Args:
          residues: ids, [residues].
          key: of this record in this epoch, [1] uint64.
          limit: maximum number of residues of a piece; None for no limit.
        """
        length = np.array([len(residues)])
        _, start, count = packing.cut(
            length,
            limit or max(len(residues), 1),
            self.long_sequences,
            random_bits.fold(key, _CROP),
        )
        residues = np.concatenate(
            [residues[s : s + c] for s, c in zip(start, count, strict=True)]
        )
        keys = random_bits.fold(random_bits.fold(key, _CORRUPT), start)
        return self.corruption.corrupt(residues.astype(np.uint8), count, keys).streams
