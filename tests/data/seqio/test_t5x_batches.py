"""T5X's data functions give the rows of `RowLoader`. T5X itself is not needed."""

import dataclasses

import numpy as np
import pytest
import seqio

from cases import row_loader_cases
from prottrans_jax.data.seqio import byte_vocabulary, t5x_batches


@dataclasses.dataclass
class DatasetConfig:
    """The fields of T5X's class that `utils.get_dataset` passes to SeqIO."""

    mixture_or_task_name: str = "fasta_iid_denoise"
    task_feature_lengths: dict = dataclasses.field(
        default_factory=lambda: dict(row_loader_cases.LENGTHS)
    )
    split: str = "train"
    batch_size: int = 6
    shuffle: bool = True
    seed: int | None = 3
    pack: bool = True


def _loader(folder, **options):
    # `DatasetConfig` has no block_records.
    return row_loader_cases.make_loader(folder, block_records=65536, **options)


def _train(folder, shard=0, num_shards=1, **fields):
    cfg = DatasetConfig(**fields)
    return t5x_batches.train_batches(cfg, shard, num_shards, data_dir=folder)


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def _assert_all_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        row_loader_cases.assert_equal(batch, other)


@pytest.mark.parametrize("pack", [True, False])
def test_batches_are_those_of_our_trainer(toy_corpus, pack):
    loader = _loader(toy_corpus, pack=pack)
    for index, batch in enumerate(_take(_train(toy_corpus, pack=pack), 30)):
        expected = loader.batch(index)
        assert set(expected) - set(batch) == {"decoder_corrupted"}
        row_loader_cases.assert_equal(batch, {name: expected[name] for name in batch})


def test_features_are_those_of_seqios_converter_for_t5x(toy_corpus):
    converter = seqio.EncDecFeatureConverter(pack=True)
    spec = _train(toy_corpus).element_spec
    lengths = converter.get_model_feature_lengths(row_loader_cases.LENGTHS)
    assert {name: x.shape for name, x in spec.items()} == {
        name: (6, length) for name, length in lengths.items()
    }


def test_shards_of_hosts_are_parts_of_one_batch(toy_corpus):
    shards = [_train(toy_corpus, shard, 3) for shard in range(3)]
    for whole in _take(_train(toy_corpus), 4):
        parts = [next(shard) for shard in shards]
        together = {
            name: np.concatenate([part[name] for part in parts]) for name in whole
        }
        row_loader_cases.assert_equal(together, whole)


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        ("train_ds-000-of-001", "train_ds-000-of-001"),
        ("train_ds-000-of-001", "process_1-of-2/train_ds-001-of-002"),
        ("process_0-of-2/train_ds-000-of-002", "train_ds-000-of-001"),
    ],
)
def test_saved_state_continues_on_any_number_of_hosts(
    toy_corpus, tmp_path, saved, restored
):
    (tmp_path / saved).parent.mkdir(exist_ok=True)
    iterator = _train(toy_corpus)
    _take(iterator, 3)
    iterator.save(tmp_path / saved)
    following = _take(iterator, 2)
    later = _train(toy_corpus)
    later.restore(tmp_path / restored)
    _assert_all_equal(_take(later, 2), following)


def test_state_of_other_rows_is_refused(toy_corpus, tmp_path):
    _train(toy_corpus).save(tmp_path / "train_ds-000-of-001")
    with pytest.raises(ValueError, match=r"seed: 3 -> 4"):
        _train(toy_corpus, seed=4).restore(tmp_path / "train_ds-000-of-001")


def test_missing_state_names_the_setting_that_saves_it(toy_corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"save_dataset = True"):
        _train(toy_corpus).restore(tmp_path / "dataset" / "train_ds-000-of-001")


@pytest.mark.parametrize(
    ("fields", "num_shards", "said"),
    [
        ({"seed": None}, 1, r"seed is None.*RANDOM_SEED"),
        ({}, 4, r"batch_size=6 .* 4 shards.*BATCH_SIZE"),
    ],
)
def test_mistakes_are_named(toy_corpus, fields, num_shards, said):
    with pytest.raises(ValueError, match=said):
        _train(toy_corpus, 0, num_shards, **fields)


@pytest.mark.parametrize("eval_steps", [2, 1000])
def test_evaluation_reads_at_most_one_epoch_in_the_records_order(
    toy_corpus, eval_steps
):
    cfg = DatasetConfig(split="validation", shuffle=False, seed=0)
    loader = _loader(
        toy_corpus, split="validation", shuffle=False, seed=0, num_epochs=1
    )
    datasets = t5x_batches.eval_batches(cfg, 0, 1, eval_steps, data_dir=toy_corpus)
    dataset = datasets["fasta_iid_denoise"]
    count = min(eval_steps, loader.num_batches)
    expected = [
        {name: loader.batch(index)[name] for name in t5x_batches.FEATURES}
        for index in range(count)
    ]
    for _ in range(2):  # Each evaluation iterates anew.
        _assert_all_equal(dataset.as_numpy_iterator(), expected)


def test_seqios_own_stream_has_the_same_targets_and_other_noise(
    toy_corpus, monkeypatch
):
    """What T5X's `utils.get_dataset` gives: noise depends on the place in the order."""
    monkeypatch.setenv("PROTTRANS_DATA_DIR", str(toy_corpus))
    batch = next(
        seqio.get_dataset(
            "fasta_iid_denoise",
            {"inputs": 150, "targets": 150},
            dataset_split="validation",
            shuffle=False,
            num_epochs=1,
            feature_converter=seqio.EncDecFeatureConverter(pack=False),
            seed=0,
            batch_size=23,
        ).as_numpy_iterator()
    )
    loader = _loader(
        toy_corpus,
        batch_size=23,
        feature_lengths={"inputs": 150, "targets": 150},
        split="validation",
        shuffle=False,
        pack=False,
        seed=0,
        num_epochs=1,
    )
    expected = loader.batch(0)
    for name in ("decoder_target_tokens", "decoder_loss_weights"):
        np.testing.assert_array_equal(batch[name], expected[name])
    hidden = [x["encoder_input_tokens"] == 127 for x in (batch, expected)]
    real = expected["decoder_target_tokens"] > 1
    assert 0.1 < hidden[0][real].mean() < 0.17
    assert not np.array_equal(*hidden)


def test_vocabulary_of_the_leaf_is_that_of_the_tasks():
    task = seqio.get_mixture_or_task("sample_iid_denoise")
    for feature in ("inputs", "targets"):
        assert task.output_features[feature].vocabulary == byte_vocabulary.prot_t5()
    assert byte_vocabulary.prot_t5().vocab_size == 128
