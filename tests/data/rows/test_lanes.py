"""Rows that continue in the next batch: every residue once, in order."""

import doctest
import json

import numpy as np
import pytest

from cases import record_cases
from prottrans_jax.data.corruption import causal
from prottrans_jax.data.records import store
from prottrans_jax.data.rows import lanes
from prottrans_jax.data.rows import loader as loader_lib
from prottrans_jax.proteins import vocabulary
import prottrans_jax.tasks  # noqa: F401 (registers tasks)

EOS = 1


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(lanes, "CHUNK_RECORDS", 20)
    monkeypatch.setattr(lanes, "CHUNK_ROUNDS", 3)


def _loader(folder, batch_size=4, **options):
    options = {"feature_lengths": {"inputs": 32}, "seed": 3, **options}
    return loader_lib.RowLoader(
        options.pop("task", "fasta_causal_lm"),
        options.pop("split", "train"),
        batch_size=batch_size,
        data_dir=folder,
        **options,
    )


def _lanes(loader, count):
    """Each feature of batches 0 .. count - 1, [lanes, count * length]."""
    batches = [loader.batch(i) for i in range(count)]
    return {k: np.concatenate([b[k] for b in batches], axis=1) for k in batches[0]}


def _assert_equal(batch, expected):
    assert batch.keys() == expected.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)


def test_worked_example_in_docstring():
    result = doctest.testmod(causal)
    assert result.attempted > 3 and result.failed == 0


def test_lanes_hold_every_protein_whole_and_in_order(toy_corpus):
    loader = _loader(toy_corpus, shuffle=False, num_epochs=1)
    found = _lanes(loader, loader.num_batches)
    expected = [
        r for _, r in record_cases.iterate(store.open(toy_corpus).split("train"))
    ]
    seen = {}
    for lane in range(4):
        segments = found["segment_ids"][lane]
        real = segments > 0
        # Padding at the end of a lane only; numbers along it from 1 without a gap.
        assert not real[real.sum() :].any()
        assert set(np.diff(segments[real])) <= {0, 1} and segments[0] == 1
        for number in range(1, segments.max() + 1):
            mine = segments == number
            inputs = found["input_tokens"][lane][mine]
            targets = found["target_tokens"][lane][mine]
            assert inputs[0] == EOS == targets[-1]
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
            positions = found["positions"][lane][mine]
            np.testing.assert_array_equal(positions, np.arange(mine.sum()))
            seen[(number - 1) * 4 + lane] = vocabulary.PROT_TXL.decode(inputs)
        np.testing.assert_array_equal(found["loss_weights"][lane], real)
    assert [seen[k] for k in range(len(expected))] == [r.decode() for r in expected]
    with pytest.raises(IndexError):
        loader.batch(loader.num_batches)


def test_epochs_follow_each_other_without_a_gap(toy_corpus):
    found = _lanes(_loader(toy_corpus, shuffle=False), 400)
    assert (found["segment_ids"] > 0).all()
    # 301 records: record 301 of the run, in lane 1, is record 0 again.
    segments = found["segment_ids"]
    first = found["input_tokens"][0][segments[0] == 1]
    again = found["input_tokens"][1][segments[1] == 301 // 4 + 1]
    np.testing.assert_array_equal(again, first)
    shuffled = _lanes(_loader(toy_corpus), 5)["input_tokens"]
    assert (shuffled != found["input_tokens"][:, : shuffled.shape[1]]).any()


def test_batches_and_rows_can_be_read_in_any_order(toy_corpus):
    run = _loader(toy_corpus)
    expected = {i: run.batch(i) for i in range(30)}
    fresh = _loader(toy_corpus)
    for index in (29, 3, 17, 0):
        _assert_equal(fresh.batch(index), expected[index])
        _assert_equal(
            fresh.batch(index, slice(2, 4)),
            {k: v[2:4] for k, v in expected[index].items()},
        )
    picked = np.array([3, 0, 0])
    _assert_equal(
        fresh.batch(8, picked), {k: v[picked] for k, v in expected[8].items()}
    )
    assert fresh.example_ids(0)[0] in {
        n for n, _ in record_cases.iterate(store.open(toy_corpus).split("train"))
    }


def test_resumed_run_goes_on_in_its_lanes(toy_corpus, monkeypatch):
    run = _loader(toy_corpus)
    state = json.loads(json.dumps(run.state(240)))
    expected = [run.batch(i) for i in range(240, 245)]
    counted = []
    make = lanes.LanePlan._make_chunk
    monkeypatch.setattr(
        lanes.LanePlan, "_make_chunk", lambda s, n: counted.append(n) or make(s, n)
    )
    resumed = _loader(toy_corpus)
    assert resumed.restore(state) == 240
    for i, batch in enumerate(expected):
        _assert_equal(resumed.batch(240 + i), batch)
    # Only from the anchor on, not from the start of the run.
    assert state["anchor"]["chunk"] > 5 and min(counted) >= state["anchor"]["chunk"]
    _assert_equal(resumed.batch(3), run.batch(3))
    # Beyond the end there is an anchor too.
    finite = _loader(toy_corpus, num_epochs=1)
    end = finite.num_batches
    assert _loader(toy_corpus, num_epochs=1).restore(finite.state(end)) == end


def test_another_number_of_lanes_is_another_run(toy_corpus):
    state = _loader(toy_corpus).state(2)
    with pytest.raises(ValueError, match="lanes: 4 -> 5"):
        _loader(toy_corpus, batch_size=5).restore(state)
    with pytest.raises(ValueError, match=r"pack=False.*hold whole proteins"):
        _loader(toy_corpus, pack=False)
    with pytest.raises(ValueError, match="long_sequences='crop'"):
        _loader(toy_corpus, long_sequences="crop")


def test_permutation_in_lanes_is_that_of_the_whole_protein(toy_corpus):
    options = {"task": "fasta_permutation_lm_lanes", "shuffle": False}
    found = _lanes(_loader(toy_corpus, **options), 12)
    # The same in rows that hold whole proteins.
    rows = _loader(
        toy_corpus,
        batch_size=60,
        task="fasta_permutation_lm",
        shuffle=False,
        pack=False,
        feature_lengths={"inputs": 160},
    ).batch(0)
    for lane in range(4):
        segments = found["segment_ids"][lane]
        for number in (1, 2):
            mine = segments == number
            record = (number - 1) * 4 + lane
            assert mine.sum() == (rows["segment_ids"][record] > 0).sum()
            for name in ("input_tokens", "factorization_ranks", "token_types"):
                np.testing.assert_array_equal(
                    found[name][lane][mine], rows[name][record][: mine.sum()]
                )


def test_host_beyond_the_end_of_its_lanes_gets_empty_rows(toy_corpus):
    loader = _loader(toy_corpus, split="validation", batch_size=30, num_epochs=1)
    batch = loader.batch(loader.num_batches - 1, slice(23, 30))
    assert (batch["segment_ids"] == 0).all() and batch["segment_ids"].shape == (7, 32)


def test_floor_of_the_loss_counts_the_end_of_each_protein(toy_corpus):
    loader = _loader(toy_corpus, num_epochs=1)
    batches = [loader.batch(i) for i in range(loader.num_batches)]
    targets = np.concatenate(
        [b["target_tokens"][b["loss_weights"] > 0] for b in batches]
    )
    share = np.bincount(targets) / len(targets)
    share = share[share > 0]
    assert loader.unigram_entropy == pytest.approx(-(share * np.log(share)).sum())
