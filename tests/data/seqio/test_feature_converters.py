import numpy as np
import pytest
import seqio
import tensorflow as tf

from prottrans_jax.data.corruption import iid_noise, streams
from prottrans_jax.data.records import corpora
from prottrans_jax.data.rows import assembly, loader
from prottrans_jax.data.seqio import feature_converters
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

LENGTHS = {"inputs": 64, "targets": 48}


@pytest.fixture
def toy_as_fasta(toy_corpus, monkeypatch):
    monkeypatch.setenv(corpora.DATA_DIR, str(toy_corpus))


def _dataset(examples):
    return tf.data.Dataset.from_generator(
        lambda: iter(examples),
        output_signature={
            name: tf.TensorSpec([None], tf.float32 if "weights" in name else tf.int32)
            for name in examples[0]
        },
    )


def test_worked_example_of_the_docstring():
    examples = [
        {
            "inputs": [7, 127, 5, 1],
            "targets": [7, 8, 1],
            "targets_loss_weights": [0.0, 1.0, 0.0],
            "targets_corrupted": [0, 1, 0],
        },
        {
            "inputs": [9, 1],
            "targets": [9, 1],
            "targets_loss_weights": [1.0, 1.0],
            "targets_corrupted": [0, 0],
        },
    ]
    converter = feature_converters.DenoisingFeatureConverter(pack=True)
    (row,) = converter(
        _dataset(examples), {"inputs": 8, "targets": 6}
    ).as_numpy_iterator()
    expected = {
        "encoder_input_tokens": [7, 127, 5, 1, 9, 1, 0, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 0, 0],
        "encoder_positions": [0, 1, 2, 3, 0, 1, 0, 0],
        "decoder_target_tokens": [7, 8, 1, 9, 1, 0],
        "decoder_input_tokens": [0, 7, 8, 0, 9, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 0, 1, 0],
        "decoder_loss_weights": [0, 1, 0, 1, 1, 0],
        "decoder_corrupted": [0, 1, 0, 0, 0, 0],
    }
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(row[name], value, err_msg=name)


@pytest.mark.parametrize(
    "objective", ["iid_denoise", "span_corruption", "masked_reconstruction"]
)
@pytest.mark.parametrize("pack", [True, False])
def test_streamed_rows_equal_assembled_rows_of_the_same_pieces(
    toy_as_fasta, objective, pack
):
    """The index path's assembly, fed with SeqIO's examples, gives SeqIO's rows."""
    task = f"fasta_{objective}"
    options = {"shuffle": False, "seed": 11}
    examples = list(
        seqio.get_mixture_or_task(task)
        .get_dataset(LENGTHS, split="validation", **options)
        .as_numpy_iterator()
    )
    streamed = list(
        seqio.get_dataset(
            task,
            LENGTHS,
            feature_converters.DenoisingFeatureConverter(pack=pack),
            dataset_split="validation",
            **options,
        ).as_numpy_iterator()
    )
    pieces = iid_noise.Corrupted(
        inputs=np.concatenate([e["inputs"] for e in examples]),
        input_lengths=np.array([len(e["inputs"]) for e in examples]),
        targets=np.concatenate([e["targets"] for e in examples]),
        target_lengths=np.array([len(e["targets"]) for e in examples]),
        loss_weights=np.concatenate([e["targets_loss_weights"] for e in examples]),
        corrupted=np.concatenate([e["targets_corrupted"] for e in examples]),
    )
    counts = [row["encoder_segment_ids"].max() for row in streamed]
    assert pack == (max(counts) > 1)
    splits = np.concatenate([[0], np.cumsum(counts)])
    assert splits[-1] == len(examples)
    ours = assembly.assemble(pieces.streams, splits, (64, 48))
    for name, value in ours.items():
        np.testing.assert_array_equal(
            value, np.stack([row[name] for row in streamed]), err_msg=name
        )
        assert value.dtype == streamed[0][name].dtype


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    "objective", ["masked_lm_pairs", "ngram_masked_lm", "permutation_lm", "causal_lm"]
)
def test_streamed_rows_of_one_stream_equal_assembled_rows(
    toy_as_fasta, objective, pack
):
    task = seqio.get_mixture_or_task(f"fasta_{objective}")
    options = {"shuffle": False, "seed": 11}
    lengths = {"inputs": 64}
    examples = list(
        task.get_dataset(lengths, split="validation", **options).as_numpy_iterator()
    )
    converter = feature_converters.converter_for(task, pack)
    streamed = list(
        seqio.get_dataset(
            task.name, lengths, converter, dataset_split="validation", **options
        ).as_numpy_iterator()
    )
    (layout,) = task.preprocessors[-1].corruption.layouts
    stream = streams.Stream(
        layout,
        np.array([len(e["inputs"]) for e in examples]),
        {
            name: np.concatenate([e[field.task_feature] for e in examples])
            for name, field in layout.fields.items()
        },
    )
    counts = [row["segment_ids"].max() for row in streamed]
    assert pack == (max(counts) > 1)
    splits = np.concatenate([[0], np.cumsum(counts)])
    assert splits[-1] == len(examples)
    for name, value in assembly.assemble([stream], splits, (64,)).items():
        np.testing.assert_array_equal(
            value, np.stack([row[name] for row in streamed]), err_msg=name
        )
        assert value.dtype == streamed[0][name].dtype


@pytest.mark.parametrize(
    ("task", "size"), [("fasta_masked_lm", 30), ("fasta_iid_denoise", 128)]
)
def test_loader_knows_how_many_ids_its_batches_may_hold(toy_as_fasta, task, size):
    assert loader.RowLoader(task, "validation", batch_size=3).vocab_size == size


def test_without_loss_weights_all_targets_have_equal_weight():
    converter = feature_converters.DenoisingFeatureConverter(pack=False)
    dataset = _dataset([{"inputs": [5, 1], "targets": [6, 7, 1]}])
    (row,) = converter(dataset, {"inputs": 4, "targets": 5}).as_numpy_iterator()
    np.testing.assert_array_equal(row["decoder_loss_weights"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(row["decoder_corrupted"], [0, 0, 0, 0, 0])
    np.testing.assert_array_equal(row["decoder_input_tokens"], [0, 6, 7, 0, 0])
