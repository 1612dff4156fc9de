"""Rows are a function of seed and row number; epochs are whole; runs resume."""

import collections
import concurrent.futures
from fractions import Fraction
import json
import shutil
import threading

import numpy as np
import pytest
import seqio

from cases import record_cases
from cases.row_loader_cases import FolderSource, assert_equal, make_loader, make_task
from prottrans_jax.data.records import shard_readers, store
from prottrans_jax.data.rows import order
from prottrans_jax.data.seqio import preprocessors
from prottrans_jax.proteins import vocabulary
import prottrans_jax.tasks  # noqa: F401 (registers tasks)


def _concatenate(batches):
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def _rows(loader, count):
    """The first rows of a run, by whole batches."""
    batches = [loader.batch(i) for i in range(-(-count // loader.batch_size))]
    return {k: v[:count] for k, v in _concatenate(batches).items()}


def _sequences(batch):
    """Letters of every segment of a batch, from the targets."""
    for tokens, segments in zip(
        batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
    ):
        for segment in range(1, segments.max(initial=0) + 1):
            yield vocabulary.PROT_T5.decode(tokens[segments == segment])


def _pieces_of(folder, split, longest):
    """Multiset of the pieces that a split is cut into, by slicing strings."""
    return collections.Counter(
        residues[i : i + longest].decode()
        for _, residues in record_cases.iterate(store.open(folder).split(split))
        for i in range(0, max(len(residues), 1), longest)
    )


def test_features_have_the_promised_shapes_and_types(toy_corpus):
    loader = make_loader(toy_corpus, feature_lengths={"inputs": 64, "targets": 80})
    batch = loader.batch(0)
    assert {k: v.shape for k, v in batch.items()} == loader.feature_shapes
    assert batch["encoder_input_tokens"].shape == (6, 64)
    assert batch["decoder_input_tokens"].shape == (6, 80)
    for name, value in batch.items():
        expected = np.float32 if name == "decoder_loss_weights" else np.int32
        assert value.dtype == expected, name


def test_each_segment_is_one_protein_shifted_numbered_and_ended(toy_corpus):
    batch = make_loader(toy_corpus).batch(2)
    pieces = _pieces_of(toy_corpus, "train", 63)
    for row in range(6):
        segments = batch["decoder_segment_ids"][row]
        np.testing.assert_array_equal(segments, batch["encoder_segment_ids"][row])
        assert segments.max() >= 1
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            assert (np.diff(at) == 1).all()
            targets = batch["decoder_target_tokens"][row, at]
            assert targets[-1] == 1 and (targets[:-1] > 2).all()
            assert batch["encoder_input_tokens"][row, at[-1]] == 1
            assert vocabulary.PROT_T5.decode(targets) in pieces
            np.testing.assert_array_equal(
                batch["decoder_input_tokens"][row, at], [0, *targets[:-1]]
            )
            for side in ("encoder", "decoder"):
                np.testing.assert_array_equal(
                    batch[f"{side}_positions"][row, at], np.arange(len(at))
                )
        for name in batch:
            assert (batch[name][row][segments == 0] == 0).all(), name


def test_neighbours_in_a_row_do_not_touch_each_other(toy_corpus, tmp_path):
    """Other residues in one record, of the same length, change its own segment only."""
    index = 17
    folder = tmp_path / "changed"
    with store.Writer(folder, name="toy") as writer:
        for split in ("train", "validation"):
            examples = list(record_cases.iterate(store.open(toy_corpus).split(split)))
            if split == "train":
                name, residues = examples[index]
                examples[index] = name, b"W" * len(residues)
            writer.add_shard(split, examples)
    options = {"num_epochs": 1, "batch_size": 400, "long_sequences": "crop"}
    before = make_loader(toy_corpus, **options).batch(0)
    after = make_loader(folder, **options).batch(0)
    np.testing.assert_array_equal(
        before["decoder_segment_ids"], after["decoder_segment_ids"]
    )
    changed = np.argwhere(
        before["decoder_target_tokens"] != after["decoder_target_tokens"]
    )
    assert len(set(changed[:, 0])) == 1
    row = changed[0, 0]
    segments = before["decoder_segment_ids"][row]
    (own,) = set(segments[changed[:, 1]])
    assert segments.max() > 1, "the record must share its row to show anything"
    for name in before:
        differs = before[name] != after[name]
        differs[row, segments == own] = False
        assert not differs.any(), name


def test_one_epoch_has_every_residue_of_every_record_once(toy_corpus):
    for pack in (True, False):
        loader = make_loader(toy_corpus, num_epochs=1, pack=pack)
        batches = [loader.batch(i) for i in range(loader.num_batches)]
        seen = collections.Counter(_sequences(_concatenate(batches)))
        assert seen == _pieces_of(toy_corpus, "train", 63)
        # Rows after the last protein are empty.
        assert batches[-1]["encoder_input_tokens"].shape == (6, 64)
        with pytest.raises(IndexError, match=f"batch {len(batches)} of {len(batches)}"):
            loader.batch(len(batches))


def test_host_whose_rows_are_all_beyond_the_end_gets_empty_rows(toy_corpus):
    loader = make_loader(toy_corpus, split="validation", num_epochs=1, batch_size=1000)
    batch = loader.batch(0, slice(990, 1000))
    assert batch["encoder_input_tokens"].shape == (10, 64)
    assert all((value == 0).all() for value in batch.values())
    assert len(loader.batch(0, [])["decoder_loss_weights"]) == 0


def test_padded_rows_hold_one_protein_each(toy_corpus):
    batch = make_loader(toy_corpus, pack=False).batch(1)
    assert set(np.unique(batch["encoder_segment_ids"])) == {0, 1}
    assert all(len(list(_sequences({k: v[i : i + 1] for k, v in batch.items()}))) == 1
               for i in range(6))  # fmt: skip


def test_epochs_have_other_orders_and_corruptions(toy_corpus):
    loader = make_loader(toy_corpus, batch_size=1, pack=False, long_sequences="crop",
                     num_epochs=2, block_records=1000)  # fmt: skip
    per_epoch = loader.num_batches // 2
    assert per_epoch == 301
    epochs = [
        _concatenate([loader.batch(e * per_epoch + i) for i in range(per_epoch)])
        for e in range(2)
    ]
    ids = [
        [loader.example_ids(e * per_epoch + i)[0] for i in range(per_epoch)]
        for e in range(2)
    ]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    # A protein that is not cropped, so that the corruption alone can differ.
    train = record_cases.iterate(store.open(toy_corpus).split("train"))
    name = next(name for name, residues in train if 50 < len(residues) < 60)
    row = [i.index(name) for i in ids]
    inputs = [e["encoder_input_tokens"][r] for e, r in zip(epochs, row, strict=True)]
    assert (inputs[0] != inputs[1]).any()
    targets = [e["decoder_target_tokens"][r] for e, r in zip(epochs, row, strict=True)]
    np.testing.assert_array_equal(*targets)
    other_seed = make_loader(toy_corpus, seed=4).batch(0)
    assert (
        other_seed["encoder_input_tokens"]
        != make_loader(toy_corpus).batch(0)["encoder_input_tokens"]
    ).any()


def test_rows_do_not_depend_on_batch_size_or_earlier_reads(toy_corpus):
    expected = _rows(make_loader(toy_corpus, batch_size=7), 250)
    assert_equal(_rows(make_loader(toy_corpus, batch_size=50), 250), expected)
    fresh = make_loader(toy_corpus, batch_size=5)
    assert_equal(fresh.batch(41), {k: v[205:210] for k, v in expected.items()})
    assert_equal(fresh.batch(3), {k: v[15:20] for k, v in expected.items()})


def test_hosts_together_make_the_batch_of_one(toy_corpus):
    whole = make_loader(toy_corpus, batch_size=8)
    for hosts in (2, 4):
        loaders = [make_loader(toy_corpus, batch_size=8) for _ in range(hosts)]
        for index in (0, 13):
            parts = [
                loader.batch(index, slice(h * 8 // hosts, (h + 1) * 8 // hosts))
                for h, loader in enumerate(loaders)
            ]
            assert_equal(_concatenate(parts), whole.batch(index))
    picked = np.array([6, 1, 1])
    assert_equal(
        whole.batch(4, picked), {k: v[picked] for k, v in whole.batch(4).items()}
    )
    with pytest.raises(IndexError, match="rows 3 to 8 of a batch of 8"):
        whole.batch(0, [3, 8])


def test_concurrent_threads_get_the_same_batches_as_one(toy_corpus):
    expected = [make_loader(toy_corpus).batch(i) for i in range(60)]
    shared_loader = make_loader(toy_corpus)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        indices = np.random.default_rng(0).permutation(60).tolist()
        found = list(pool.map(shared_loader.batch, indices))
    for index, batch in zip(indices, found, strict=True):
        assert_equal(batch, expected[index])


@pytest.mark.parametrize("batch_size", [6, 4, 9])
def test_resumed_epoch_is_complete_and_nothing_comes_twice(toy_corpus, batch_size):
    options = {"num_epochs": 1}
    unbroken = make_loader(toy_corpus, **options)
    expected = _rows(unbroken, unbroken.num_batches * 6)
    before = 11
    state = json.loads(json.dumps(unbroken.state(before)))
    resumed = make_loader(toy_corpus, batch_size=batch_size, **options)
    next_index = resumed.restore(state)
    rest = [resumed.batch(i) for i in range(next_index, resumed.num_batches)]
    first = {k: v[: before * 6] for k, v in expected.items()}
    together = _concatenate([first, *rest])
    rows = min(
        len(v) for v in (together["decoder_positions"], expected["decoder_positions"])
    )
    assert_equal(
        {k: v[:rows] for k, v in together.items()},
        {k: v[:rows] for k, v in expected.items()},
    )
    seen = collections.Counter(_sequences(together))
    assert seen == _pieces_of(toy_corpus, "train", 63)


def test_resume_needs_the_block_of_its_row_only(toy_corpus, monkeypatch):
    run = make_loader(toy_corpus)
    far = 1_500
    state = run.state(far)
    expected = run.batch(far)
    packed = []
    block = order.RecordOrder.block
    monkeypatch.setattr(
        order.RecordOrder, "block", lambda self, n: packed.append(n) or block(self, n)
    )
    resumed = make_loader(toy_corpus)
    assert resumed.restore(state) == far
    assert_equal(resumed.batch(far), expected)
    assert len(packed) <= 2
    # Rows before the anchor are still those of the run, and do not undo it.
    assert_equal(resumed.batch(3), run.batch(3))
    packed.clear()
    assert_equal(resumed.batch(far), expected)
    assert len(packed) <= 2


def test_order_of_records_is_kept_without_shuffle(toy_corpus):
    loader = make_loader(toy_corpus, shuffle=False, pack=False, split="validation",
                     long_sequences="crop", num_epochs=1)  # fmt: skip
    ids = [i for b in range(loader.num_batches) for i in loader.example_ids(b)]
    assert ids == [f"P3_{i}" for i in range(23)]
    packed = make_loader(toy_corpus, shuffle=False, split="validation", num_epochs=1)
    ids = [i for b in range(packed.num_batches) for i in packed.example_ids(b)]
    assert sorted(set(ids)) == sorted(f"P3_{i}" for i in range(23))


def test_mixture_keeps_its_rates_and_every_epoch_of_each_task(toy_corpus, other_corpus):
    spans = preprocessors.span_corruption()
    with seqio.test_utils.mock.patch.dict(seqio.TaskRegistry._REGISTRY):
        for task in (
            make_task(toy_corpus, "mixed_toy"),
            make_task(other_corpus, "mixed_other", spans),
        ):
            seqio.TaskRegistry.add_provider(task.name, task)
        mixture = seqio.Mixture("mixed", [("mixed_toy", 3), ("mixed_other", 1)])
        loader = make_loader(None, task=mixture, long_sequences="crop", pack=False)
    ids = [loader.example_ids(i) for i in range(40)]
    ids = [name for batch in ids for name in batch]
    of_other = np.array([name.startswith("P4_") for name in ids])
    shares = np.cumsum(of_other) - np.arange(1, 241) / 4
    assert np.abs(shares).max() <= 1
    seen = [name for name in ids if name.startswith("P4_")]
    assert len(seen) == 60
    assert sorted(seen[:40]) == sorted(f"P4_{i}" for i in range(40))
    # Each with its own objective: span corruption's targets are short.
    batch = _rows(loader, 240)
    has_sentinel = (batch["decoder_target_tokens"] >= 28).any(1)
    np.testing.assert_array_equal(has_sentinel, of_other)
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        make_loader(None, task=mixture, num_epochs=1)


def test_packed_rows_of_a_mixture_use_the_corruption_of_each_task(
    toy_corpus, other_corpus
):
    tasks = [
        make_task(toy_corpus, "packed_toy"),
        make_task(other_corpus, "packed_other", preprocessors.span_corruption()),
    ]
    with seqio.test_utils.mock.patch.dict(seqio.TaskRegistry._REGISTRY):
        for task in tasks:
            seqio.TaskRegistry.add_provider(task.name, task)
        mixture = seqio.Mixture("packed", [(t.name, 0.5) for t in tasks])
        loader = make_loader(None, task=mixture)
    batch = _rows(loader, 30)
    pieces = _pieces_of(toy_corpus, "train", 63)
    kinds = collections.Counter()
    for letters in _sequences(batch):
        kinds["spans" if "extra_id" in letters else "whole"] += 1
        assert "extra_id" in letters or letters in pieces or len(letters) == 1
    assert min(kinds.values()) > 10


def test_schedule_follows_rates_at_every_moment():
    rates = (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6))
    counter = np.arange(6000)
    component, ordinal = order.schedule(counter, rates)
    for c, rate in enumerate(rates):
        mine = component == c
        np.testing.assert_array_equal(ordinal[mine], np.arange(mine.sum()))
        assert np.abs(np.cumsum(mine) - (counter + 1) * float(rate)).max() <= 1.5
    later, _ = order.schedule(np.array([5999, 10]), rates)
    np.testing.assert_array_equal(later, component[[5999, 10]])


def test_unigram_entropy_is_that_of_the_letters_as_ids(toy_corpus):
    text = b"".join(
        r for _, r in record_cases.iterate(store.open(toy_corpus).split("train"))
    )
    counts = np.array(list(collections.Counter(text).values())) / len(text)
    expected = -(counts * np.log(counts)).sum()
    assert make_loader(toy_corpus).unigram_entropy == pytest.approx(expected, rel=1e-9)


def test_description_counts_what_batches_hold(toy_corpus):
    loader = make_loader(toy_corpus, num_epochs=1, block_records=1000)
    batch = _concatenate([loader.batch(i) for i in range(loader.num_batches)])
    rows = (batch["encoder_segment_ids"] > 0).any(1).sum()
    tokens = (batch["encoder_segment_ids"] > 0).sum()
    told = loader.describe()
    assert told["records"] == 301
    assert told["rows_per_epoch"] == rows
    assert told["fill"] == pytest.approx(tokens / (rows * 64))
    assert told["residue_fill"] == pytest.approx(told["residues"] / (rows * 64))
    assert told["fill"] > 0.97


@pytest.mark.parametrize(
    "objective",
    ["masked_lm", "masked_lm_pairs", "ngram_masked_lm_pairs", "permutation_lm"],
)
@pytest.mark.parametrize("pack", [True, False])
def test_rows_of_one_stream_hold_every_residue_once(toy_corpus, objective, pack):
    options = {"task": f"fasta_{objective}", "feature_lengths": {"inputs": 40},
               "num_epochs": 1, "pack": pack}  # fmt: skip
    loader = make_loader(toy_corpus, **options)
    batches = [loader.batch(i) for i in range(loader.num_batches)]
    assert {k: v.shape for k, v in batches[0].items()} == loader.feature_shapes
    batch = _concatenate(batches)
    vocab = {"m": vocabulary.PROT_BERT, "n": vocabulary.PROT_ALBERT,
             "p": vocabulary.PROT_XLNET}[objective[0]]  # fmt: skip
    letters = collections.Counter(
        vocab.decode(batch["target_tokens"]).replace("<unk>", "X")
    )
    split = store.open(toy_corpus).split("train")
    assert letters == collections.Counter(
        "".join(r.decode() for _, r in record_cases.iterate(split))
    )
    real = batch["segment_ids"] > 0
    assert (batch["input_tokens"][~real] == vocab.pad_id).all()
    assert (batch["loss_weights"][~real] == 0).all()
    assert (batch["positions"][batch["target_tokens"] == vocab.cls_id] == 0).all() == (
        objective != "permutation_lm"
    )
    # Any host's part of any batch, from a loader that read nothing else.
    part = make_loader(toy_corpus, **options).batch(3, slice(1, 4))
    assert_equal(part, {k: v[1:4] for k, v in batches[3].items()})


def test_wrong_arguments_are_refused(toy_corpus):
    with pytest.raises(ValueError, match="batch_size=0"):
        make_loader(toy_corpus, batch_size=0)
    with pytest.raises(ValueError, match="long_sequences='trim'"):
        make_loader(toy_corpus, long_sequences="trim")
    with pytest.raises(ValueError, match="feature_lengths has inputs; it must"):
        make_loader(toy_corpus, feature_lengths={"inputs": 9})
    with pytest.raises(
        ValueError, match="has inputs and targets; it must have inputs for this task"
    ):
        make_loader(toy_corpus, task="fasta_masked_lm")


def test_damaged_lengths_stop_a_loader_before_its_first_batch(toy_corpus, tmp_path):
    folder = shutil.copytree(toy_corpus, tmp_path / "damaged")
    path = folder / "train.lengths.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.DamageError, match=r"train\.lengths\.npy is damaged"):
        make_loader(folder)
    with pytest.raises(store.DamageError, match=r"train\.lengths\.npy is damaged"):
        FolderSource(folder).num_input_examples("train")
    make_loader(folder, split="validation")


def test_corpora_of_a_mixture_are_read_at_the_same_time(toy_corpus, other_corpus):
    # Both wait for each other: one after another, the first would wait for ever.
    barrier = threading.Barrier(2, timeout=60)

    class Waiting:
        def __init__(self, path):
            self._reader = shard_readers.open_array_record(path)
            self.num_records = self._reader.num_records
            self._waited = "other" not in path and "00001" in path

        def read(self, indices):
            if not self._waited:
                self._waited = True
                barrier.wait()
            return self._reader.read(indices)

    class Source(FolderSource):
        def open(self, data_dir=None):
            return store.open(self._folder, open_reader=Waiting)

    names = []
    for folder in (toy_corpus, other_corpus):
        corrupt = preprocessors.iid_denoise()
        seqio.TaskRegistry.add(
            f"waiting_{folder.name}",
            source=Source(folder),
            preprocessors=preprocessors.pretraining(corrupt),
            output_features=preprocessors.output_features(corrupt),
        )
        names.append(f"waiting_{folder.name}")
    seqio.MixtureRegistry.add("waiting", names, default_rate=1.0)
    try:
        batch = make_loader(None, task="waiting", batch_size=40).batch(0)
        assert (batch["decoder_segment_ids"] > 0).any()
    finally:
        seqio.MixtureRegistry.remove("waiting")
        for name in names:
            seqio.TaskRegistry.remove(name)
