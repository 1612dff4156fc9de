"""Feature converters: `seqio.get_dataset` gives the batch features of `RowLoader`."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from prottrans_jax.data.corruption import iid_noise, streams
from prottrans_jax.data.seqio import preprocessors

_NOTES = "targets_notes"
_LOSS_WEIGHTS = iid_noise.TARGETS.fields["loss_weights"].task_feature
_CORRUPTED = iid_noise.TARGETS.fields["corrupted"].task_feature


class DenoisingFeatureConverter(seqio.FeatureConverter):
    """Encoder-decoder features with loss weights and kinds of positions.

    Takes any task with inputs and targets. Without loss weights every target has weight
    1; without kinds of positions every target counts as intact. A row that is not
    packed is one segment.

    Example, packed (length 8 and 6):

      {"inputs": [7, 127, 5, 1], "targets": [7, 8, 1],
       "targets_loss_weights": [0, 1, 0], "targets_corrupted": [0, 1, 0]} and
      {"inputs": [9, 1], "targets": [9, 1], ... [1, 1], ... [0, 0]}

       encoder_input_tokens  [7, 127, 5, 1, 9, 1, 0, 0]
       encoder_segment_ids   [1, 1, 1, 1, 2, 2, 0, 0]
       encoder_positions     [0, 1, 2, 3, 0, 1, 0, 0]
       decoder_target_tokens [7, 8, 1, 9, 1, 0]
       decoder_input_tokens  [0, 7, 8, 0, 9, 0]
       decoder_segment_ids   [1, 1, 1, 2, 2, 0]
       decoder_positions     [0, 1, 2, 0, 1, 0]
       decoder_loss_weights  [0, 1, 0, 1, 1, 0]
       decoder_corrupted     [0, 1, 0, 0, 0, 0]
    """

    TASK_FEATURES = {  # noqa: RUF012 (SeqIO's class attributes)
        "inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }
    MODEL_FEATURES = {  # noqa: RUF012
        name: seqio.FeatureConverter.FeatureSpec(dtype=tf.as_dtype(field.dtype))
        for layout in (iid_noise.INPUTS, iid_noise.TARGETS)
        for name, field in layout.features.items()
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        lengths = {**task_feature_lengths, _NOTES: task_feature_lengths["targets"]}
        ds = ds.map(_take_notes, num_parallel_calls=tf.data.AUTOTUNE)
        ds = self._pack_or_pad(ds, lengths)
        return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_example(self, row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        features = {
            "encoder_input_tokens": row["inputs"],
            "decoder_target_tokens": row["targets"],
            "decoder_input_tokens": seqio.utils.make_autoregressive_inputs(
                row["targets"],
                sequence_id=row.get("targets_segment_ids"),
                bos_id=self.bos_id,
            ),
        }
        for prefix, feature in (("encoder", "inputs"), ("decoder", "targets")):
            if self.pack:
                segments = row[f"{feature}_segment_ids"]
                positions = row[f"{feature}_positions"]
            else:
                segments = tf.cast(tf.not_equal(row[feature], 0), tf.int32)
                positions = tf.range(tf.size(segments)) * segments
            features[f"{prefix}_segment_ids"] = segments
            features[f"{prefix}_positions"] = positions
        real = features["decoder_segment_ids"] > 0
        # make_autoregressive_inputs gives pad at the start of a segment, but on padding
        # it repeats the last target.
        features["decoder_input_tokens"] *= tf.cast(real, tf.int32)
        features["decoder_loss_weights"] = tf.cast(row[_NOTES] // 8, tf.float32)
        features["decoder_corrupted"] = tf.where(real, row[_NOTES] % 8 - 1, 0)
        return features

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Length of each feature, from those of inputs and targets."""
        return {
            name: task_feature_lengths[layout.length]
            for layout in (iid_noise.INPUTS, iid_noise.TARGETS)
            for name in layout.features
        }


def _take_notes(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Encodes loss weight (0 or 1) and kind of position as one integer above 0.

    SeqIO's packing casts features to int32 and treats zeros as padding.
    """
    targets = example["targets"]
    weights = example.get(_LOSS_WEIGHTS)
    weights = 1 if weights is None else tf.cast(weights > 0, tf.int32)
    corrupted = example.get(_CORRUPTED, 0)
    notes = tf.ones_like(targets) + corrupted + 8 * weights
    return {"inputs": example["inputs"], "targets": targets, _NOTES: notes}


class SingleStreamFeatureConverter(seqio.FeatureConverter):
    """Features of a corruption with one stream: every family but T5.

    Example, masked language model, packed (length 8), [CLS] 2, [SEP] 3, [MASK] 4:

      {"inputs": [2, 4, 3], "targets": [2, 5, 3], "loss_weights": [0, 1, 0], ...} and
      {"inputs": [2, 7, 3], "targets": [2, 7, 3], "loss_weights": [0, 0, 0], ...}

       input_tokens  [2, 4, 3, 2, 7, 3, 0, 0]
       target_tokens [2, 5, 3, 2, 7, 3, 0, 0]
       loss_weights  [0, 1, 0, 0, 0, 0, 0, 0]
       segment_ids   [1, 1, 1, 2, 2, 2, 0, 0]
       positions     [0, 1, 2, 0, 1, 2, 0, 0]

    Causal tasks get packed rows too. Lanes, in which a row continues in the next batch,
    exist only in `loader.RowLoader`.
    """

    TASK_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, corruption: streams.Corruption, pack: bool = True):
        """Converts examples of tasks with this corruption."""
        (self._layout,) = corruption.layouts
        spec = seqio.FeatureConverter.FeatureSpec
        self.TASK_FEATURES = {self._layout.length: spec(dtype=tf.int32)}
        self.MODEL_FEATURES = {
            name: spec(dtype=tf.as_dtype(field.dtype))
            for name, field in self._layout.features.items()
        }
        super().__init__(pack=pack)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        length = task_feature_lengths[self._layout.length]
        names = {n: f.task_feature for n, f in self._layout.fields.items()}

        # SeqIO packs integers and treats zeros as padding. The lowest value is -1, so
        # 2 is added to all of them.
        def lift(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {n: tf.cast(example[t], tf.int32) + 2 for n, t in names.items()}

        ds = ds.map(lift, num_parallel_calls=tf.data.AUTOTUNE)
        ds = self._pack_or_pad(ds, dict.fromkeys(names, length))
        return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_example(self, row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        any_name = next(iter(self._layout.fields))
        if self.pack:
            segments = row[f"{any_name}_segment_ids"]
            positions = row[f"{any_name}_positions"]
        else:
            segments = tf.cast(row[any_name] > 0, tf.int32)
            positions = tf.range(tf.size(segments)) * segments
        features = {"segment_ids": segments, "positions": positions}
        for name, field in self._layout.fields.items():
            value = tf.where(segments > 0, row[name] - 2, field.fill)
            features[name] = tf.cast(value, tf.as_dtype(field.dtype))
        return features

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """The same length for all features."""
        length = task_feature_lengths[self._layout.length]
        return dict.fromkeys(self._layout.features, length)


def converter_for(
    task: seqio.Task | seqio.Mixture, pack: bool
) -> seqio.FeatureConverter:
    """The converter that gives the same features of a task as `loader.RowLoader`."""
    for part in seqio.get_subtasks(task):
        for step in part.preprocessors:
            if (
                isinstance(step, preprocessors.Corrupt)
                and len(step.corruption.layouts) == 1
            ):
                return SingleStreamFeatureConverter(step.corruption, pack=pack)
    return DenoisingFeatureConverter(pack=pack)
