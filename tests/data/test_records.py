"""Prepared folders: random access, damage that is named, nothing half finished."""

import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from prottrans_jax.data import records

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYX", np.uint8)


def random_proteins(count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 700, count)
    return [
        (f"P{i}|é", rng.choice(LETTERS, n).tobytes()) for i, n in enumerate(lengths)
    ]


PROTEINS = random_proteins(700)


@pytest.fixture
def folder(tmp_path):
    with records.Writer(tmp_path / "made", name="toy", version="2.0.0") as writer:
        for start, stop in [(0, 300), (300, 301), (301, 650)]:
            writer.add_shard("train", PROTEINS[start:stop])
        writer.add_shard("validation", PROTEINS[650:])
    return tmp_path / "made"


def test_random_reads_return_the_records_in_the_order_asked_for(folder):
    split = records.open(folder).split("train")
    index = np.random.default_rng(1).integers(0, 650, 999)
    assert split.read(index) == [PROTEINS[i][1] for i in index]
    assert split.ids(index) == [PROTEINS[i][0] for i in index]
    assert split.read([]) == []
    assert list(records.iterate(split, batch=37)) == PROTEINS[:650]


def test_manifest_counts_what_was_written(folder):
    manifest = records.open(folder).manifest
    assert (manifest.name, manifest.version) == ("toy", "2.0.0")
    train = manifest.splits["train"]
    sequences = [s for _, s in PROTEINS[:650]]
    assert train.num_records == 650
    assert train.num_residues == sum(map(len, sequences))
    assert train.max_length == max(map(len, sequences))
    text = b"".join(sequences).decode()
    assert train.alphabet == {a: text.count(a) for a in sorted(set(text))}
    assert sum(train.length_histogram.values()) == 650
    assert train.length_histogram["32-63"] == sum(32 <= len(s) < 64 for s in sequences)
    split = records.open(folder).split("train")
    assert split.lengths.dtype == np.uint32
    assert split.lengths.tolist() == [len(s) for s in sequences]


def test_fingerprint_depends_on_the_records_alone(tmp_path, folder):
    prints = {}
    for name, proteins in [("same", PROTEINS[650:]), ("other", PROTEINS[649:])]:
        with records.Writer(tmp_path / name, name=name) as writer:
            writer.add_shard("validation", proteins)
        prints[name] = records.open(tmp_path / name).split("validation").fingerprint
    original = records.open(folder).split("validation").fingerprint
    assert prints["same"] == original != prints["other"]


def test_threads_and_pickles_share_a_split(folder):
    split = pickle.loads(pickle.dumps(records.open(folder).split("train")))
    failures = []

    def read(seed):
        index = np.random.default_rng(seed).integers(0, 650, 50)
        for _ in range(20):
            if split.read(index) != [PROTEINS[i][1] for i in index]:
                failures.append(seed)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_a_forked_process_opens_its_own_readers(folder):
    split = records.open(folder).split("train")
    split.read([0, 649])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(split.read, ([5, 649],)).get(timeout=60) == [
            PROTEINS[5][1],
            PROTEINS[649][1],
        ]


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_an_error_naming_file_and_record(folder, seed):
    rng = np.random.default_rng(seed)
    path = folder / "train-00002-of-00003.array_record"
    data = bytearray(path.read_bytes())
    # In the compressed records; behind them come padding and the index.
    data[int(rng.integers(200, 60_000))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    split = records.open(folder).split("train")
    wrong, errors = 0, []
    for i in range(650):
        try:
            wrong += split.read([i])[0] != PROTEINS[i][1]
        except ValueError as e:
            errors.append((i, str(e)))
    assert wrong == 0 and errors
    for i, message in errors:
        assert f"{path}: record {i - 301} (record {i} of train) is corrupt" in message
    with pytest.raises(ValueError, match=r"record 650 .*|record \d+ \(record \d+ of"):
        split.read(np.arange(650))
    assert records.verify(folder) == [
        f"{path}: its SHA-256 is not that of the manifest"
    ]


def test_cut_missing_and_swapped_files_are_named(folder):
    good = folder / "train-00000-of-00003.array_record"
    data = good.read_bytes()
    good.write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=r"00000-of.* has \d+ bytes, the manifest says"
    ):
        records.open(folder).split("train")
    good.unlink()
    with pytest.raises(ValueError, match=r"00000-of.*record is missing"):
        records.open(folder).split("train")
    assert records.verify(folder) == [f"{good}: missing"]
    good.write_bytes(data)
    assert records.verify(folder) == []
    lengths = folder / "train.lengths.npy"
    index = np.load(lengths)
    index[3] += 1
    np.save(lengths, index)
    with pytest.raises(ValueError, match=r"record 3 \(record 3 of train\) is corrupt"):
        records.open(folder).split("train").read([2, 3])
    assert records.verify(folder) == [
        f"{lengths}: its SHA-256 is not that of the manifest"
    ]


def test_wrong_questions_are_answered_with_what_there_is(folder, tmp_path):
    opened = records.open(folder)
    with pytest.raises(ValueError, match="no split 'test', it has train, validation"):
        opened.split("test")
    for index in (-1, 650):
        with pytest.raises(
            ValueError, match=f"650 records, there is no record {index}"
        ):
            opened.split("train").read([0, index])
    with pytest.raises(ValueError, match=r"no finished folder.*prottrans_jax.prepare"):
        records.open(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["{", "[]", '{"splits": {"train": {}}}'])
def test_a_damaged_manifest_is_named(folder, damage):
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        records.open(folder)


def test_a_manifest_whose_counts_do_not_add_up_is_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["num_records"] -= 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="do not add up to 649"):
        records.open(folder)


def test_a_finished_folder_is_replaced_only_when_asked(folder):
    before = records.open(folder).split("train").fingerprint
    with pytest.raises(ValueError, match="--overwrite"):
        records.Writer(folder, name="again")
    with records.Writer(folder, name="again", overwrite=True) as writer:
        writer.add_shard("train", PROTEINS[:5])
        assert records.open(folder).split("train").fingerprint == before
    assert records.open(folder).manifest.name == "again"
    assert [p.name for p in folder.parent.iterdir()] == ["made"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not touching it"):
        records.Writer(tmp_path, name="toy", overwrite=True)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), records.Writer(tmp_path / "x", name="x") as w:
        w.add_shard("train", PROTEINS[:5])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


_WRITE_AND_DIE = """
import os, signal, sys
from prottrans_jax.data import records
writer = records.Writer(sys.argv[1], name="dead")
writer.add_shard("train", [("P1", "MKV")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_folder_and_the_next_one_takes_over(tmp_path):
    target = tmp_path / "x"
    died = subprocess.run([sys.executable, "-c", _WRITE_AND_DIE, str(target)])
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="no finished folder"):
        records.open(target)
    with records.Writer(target, name="alive") as writer:
        writer.add_shard("train", PROTEINS[:5])
    assert records.open(target).split("train").num_records == 5
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_writers_of_one_folder_are_refused(tmp_path):
    with records.Writer(tmp_path / "x", name="first") as first:
        with pytest.raises(ValueError, match=r"written by another process \(pid \d+"):
            records.Writer(tmp_path / "x", name="second")
        first.add_shard("train", PROTEINS[:5])
    assert records.open(tmp_path / "x").manifest.name == "first"


def test_an_empty_split_can_be_opened(tmp_path):
    with records.Writer(tmp_path / "x", name="x") as writer:
        writer.add_shard("validation", [])
    split = records.open(tmp_path / "x").split("validation")
    assert split.num_records == 0 and split.lengths.size == 0 and split.read([]) == []
