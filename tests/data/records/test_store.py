"""Prepared folders: random access, damage that is named, nothing half finished."""

import hashlib
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from cases import record_cases
from prottrans_jax.data.records import shard_readers, store
from prottrans_jax.files import locks

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
    with store.Writer(tmp_path / "made", name="toy", version="2.0.0") as writer:
        for start, stop in [(0, 300), (300, 301), (301, 650)]:
            writer.add_shard("train", PROTEINS[start:stop])
        writer.add_shard("validation", PROTEINS[650:])
    return tmp_path / "made"


def test_random_reads_return_the_records_in_the_requested_order(folder):
    split = store.open(folder).split("train")
    index = np.random.default_rng(1).integers(0, 650, 999)
    assert split.read(index) == [PROTEINS[i][1] for i in index]
    assert split.ids(index) == [PROTEINS[i][0] for i in index]
    assert split.read([]) == []
    assert list(record_cases.iterate(split, batch=37)) == PROTEINS[:650]


def test_manifest_counts_what_was_written(folder):
    manifest = store.open(folder).manifest
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
    split = store.open(folder).split("train")
    assert split.lengths.dtype == np.uint32
    assert split.lengths.tolist() == [len(s) for s in sequences]


def test_fingerprint_depends_on_the_records_alone(tmp_path, folder):
    prints = {}
    for name, proteins in [("same", PROTEINS[650:]), ("other", PROTEINS[649:])]:
        with store.Writer(tmp_path / name, name=name) as writer:
            writer.add_shard("validation", proteins)
        prints[name] = store.open(tmp_path / name).split("validation").fingerprint
    original = store.open(folder).split("validation").fingerprint
    assert prints["same"] == original != prints["other"]


def test_threads_and_pickles_share_a_split(folder):
    split = pickle.loads(pickle.dumps(store.open(folder).split("train")))
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
    split = store.open(folder).split("train")
    split.read([0, 649])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(split.read, ([5, 649],)).get(timeout=60) == [
            PROTEINS[5][1],
            PROTEINS[649][1],
        ]


class Gate:
    """Opens shards whose reads wait until `count` of them are under way."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=60)

    def open(self, path):
        reader = shard_readers.open_array_record(path)

        class Waiting:
            num_records = staticmethod(reader.num_records)

            @staticmethod
            def read(indices):
                self.barrier.wait()
                return reader.read(indices)

        return Waiting()


def test_shards_of_one_call_are_read_at_the_same_time(folder):
    # One after another, the first would wait for ever.
    split = store.open(folder, open_reader=Gate(3).open).split("train")
    assert split.read([649, 0, 300]) == [PROTEINS[i][1] for i in (649, 0, 300)]


def test_shards_are_opened_when_they_are_first_read_and_once(folder):
    opened = []

    def count(path):
        opened.append(path[-27:-18])
        return shard_readers.open_array_record(path)

    split = store.open(folder, open_reader=count).split("train")
    assert opened == []
    split.read([0, 5])
    split.read([300, 7])
    split.read([300, 1])
    assert opened == ["00000-of-", "00001-of-"]


def test_number_of_open_readers_is_limited():
    readers = shard_readers.OpenReaders(max_open=2)
    opened = []

    def get(key):
        return readers.get(key, lambda: opened.append(key) or key)

    # Of 1 and 2, 1 was used last.
    assert [get(k) for k in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert opened == [1, 2, 3, 2]


def test_a_reader_that_failed_to_open_is_tried_again():
    readers = shard_readers.OpenReaders()

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        readers.get(1, fail)
    assert readers.get(1, lambda: "open") == "open"


def test_more_shards_than_open_files_are_allowed(folder):
    few = 60
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({few}, {few}))
from prottrans_jax.data.records import store
with store.Writer("many", name="many") as writer:
    for i in range({2 * few}):
        writer.add_shard("train", [(f"P{{i}}", "M" * (i + 1))])
split = store.open("many").split("train")
assert [len(s) for s in split.read(range({2 * few}))] == list(range(1, {2 * few} + 1))
"""
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)


def test_of_several_corrupt_records_the_first_shard_is_named(folder):
    for shard in (2, 0):
        path = folder / f"train-0000{shard}-of-00003.array_record"
        data = bytearray(path.read_bytes())
        data[400:60_000] = bytes(len(data[400:60_000]))
        path.write_bytes(data)
    split = store.open(folder).split("train")
    for _ in range(5):
        with pytest.raises(store.DamageError, match=r"train-00000-of-.*record 10 "):
            split.read([640, 10, 11, 310])


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_an_error_naming_file_and_record(folder, seed):
    rng = np.random.default_rng(seed)
    path = folder / "train-00002-of-00003.array_record"
    data = bytearray(path.read_bytes())
    # In the compressed records; behind them come padding and the index.
    data[int(rng.integers(200, 60_000))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    split = store.open(folder).split("train")
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
    [problem] = store.verify(folder)
    assert problem.startswith(f"{path}: its SHA-256 is not that of the manifest: ")


def test_cut_missing_and_swapped_files_are_named(folder):
    good = folder / "train-00000-of-00003.array_record"
    data = good.read_bytes()
    good.write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=r"00000-of.* has \d+ bytes, the manifest says"
    ):
        store.open(folder).split("train")
    good.unlink()
    with pytest.raises(ValueError, match=r"00000-of.*record is missing"):
        store.open(folder).split("train")
    assert store.verify(folder) == [f"{good}: missing"]
    good.write_bytes(data)
    assert store.verify(folder) == []


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


LENGTHS_DAMAGE = {
    "flipped bit": flip_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "header alone": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "other type": lambda path: np.save(path, np.load(path).astype(np.int64)),
    "other text": lambda path: path.write_bytes(b"404: Not Found"),
}


@pytest.mark.parametrize("damage", LENGTHS_DAMAGE)
def test_damaged_lengths_are_named_with_both_digests_when_a_split_is_opened(
    folder, damage
):
    path = folder / "train.lengths.npy"
    before = sha256(path)
    LENGTHS_DAMAGE[damage](path)
    with pytest.raises(store.DamageError) as error:
        store.open(folder).split("train")
    for part in (str(path), before, sha256(path), "Copy the folder again"):
        assert part in str(error.value)
    store.open(folder).split("validation")
    [problem] = store.verify(folder)
    assert str(path) in problem and before in problem and sha256(path) in problem


def without_digest(path):
    """A manifest as earlier versions wrote it."""
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    return manifest


@pytest.mark.parametrize("damage", ["empty", "other type", "header alone"])
def test_invalid_lengths_with_a_matching_digest_are_named(folder, damage):
    path = folder / "train.lengths.npy"
    LENGTHS_DAMAGE[damage](path)
    manifest = without_digest(folder / "manifest.json")
    manifest["splits"]["train"]["lengths_sha256"] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(store.DamageError, match=r"train\.lengths\.npy is damaged: "):
        store.open(folder).split("train")


def test_a_missing_length_index_is_named(folder):
    (folder / "train.lengths.npy").unlink()
    with pytest.raises(store.DamageError, match=r"train\.lengths\.npy is missing"):
        store.open(folder).split("train")


def test_unknown_splits_and_records_are_refused_with_the_existing_ones(
    folder, tmp_path
):
    opened = store.open(folder)
    with pytest.raises(ValueError, match="no split 'test', it has train, validation"):
        opened.split("test")
    for index in (-1, 650):
        with pytest.raises(
            ValueError, match=f"650 records, there is no record {index}"
        ):
            opened.split("train").read([0, index])
    with pytest.raises(
        ValueError, match=r"not a finished folder.*prottrans_jax.prepare"
    ):
        store.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"splits": {"train": {}}}', b"null"]
)
def test_a_damaged_manifest_is_named(folder, damage):
    (folder / "manifest.json").write_bytes(damage)
    with pytest.raises(store.DamageError, match=r"manifest.json is damaged: .+Copy"):
        store.open(folder)
    [problem] = store.verify(folder)
    assert "manifest.json is damaged" in problem


@pytest.mark.parametrize(
    "field, other",
    [
        ("version", "2.0.1"),
        ("skipped", {"x": 1}),
        ("sha256", "0" * 64),
        ("splits", {}),
    ],
)
def test_a_manifest_that_was_changed_is_named_with_both_digests(folder, field, other):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    before = manifest["sha256"]
    manifest[field] = other
    path.write_text(json.dumps(manifest))
    with pytest.raises(store.DamageError) as error:
        store.open(folder)
    expected = other if field == "sha256" else before
    assert f"not {expected} (if" in str(error.value)
    assert str(path) in str(error.value) and 'remove the line "sha256"' in str(
        error.value
    )


def test_a_manifest_without_a_digest_opens(folder):
    without_digest(folder / "manifest.json")
    split = store.open(folder).split("train")
    assert split.read([5]) == [PROTEINS[5][1]]
    assert store.verify(folder) == []


@pytest.mark.parametrize("field", ["num_records", "num_residues"])
def test_a_manifest_whose_counts_do_not_add_up_is_refused(folder, field):
    path = folder / "manifest.json"
    manifest = without_digest(path)
    manifest["splits"]["train"][field] -= 1
    path.write_text(json.dumps(manifest))
    total = manifest["splits"]["train"][field]
    with pytest.raises(store.DamageError, match=f"not to {total}"):
        store.open(folder)


def test_a_finished_folder_is_replaced_only_when_asked(folder):
    before = store.open(folder).split("train").fingerprint
    with pytest.raises(ValueError, match="--overwrite"):
        store.Writer(folder, name="again")
    with store.Writer(folder, name="again", overwrite=True) as writer:
        writer.add_shard("train", PROTEINS[:5])
        assert store.open(folder).split("train").fingerprint == before
    assert store.open(folder).manifest.name == "again"
    assert [p.name for p in folder.parent.iterdir()] == ["made"]


def test_folder_without_a_manifest_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not touching it"):
        store.Writer(tmp_path, name="toy", overwrite=True)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), store.Writer(tmp_path / "x", name="x") as w:
        w.add_shard("train", PROTEINS[:5])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


_WRITE_AND_DIE = """
import os, signal, sys
from prottrans_jax.data.records import store
writer = store.Writer(sys.argv[1], name="dead")
writer.add_shard("train", [("P1", "MKV")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_folder_and_the_next_one_takes_over(tmp_path):
    target = tmp_path / "x"
    died = subprocess.run([sys.executable, "-c", _WRITE_AND_DIE, str(target)])
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="not a finished folder"):
        store.open(target)
    with store.Writer(target, name="alive") as writer:
        writer.add_shard("train", PROTEINS[:5])
    assert store.open(target).split("train").num_records == 5
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_writers_of_one_folder_are_refused(tmp_path):
    with store.Writer(tmp_path / "x", name="first") as first:
        with pytest.raises(locks.LockedError, match=r"by process \d+ on .* since"):
            store.Writer(tmp_path / "x", name="second")
        first.add_shard("train", PROTEINS[:5])
    assert store.open(tmp_path / "x").manifest.name == "first"


def test_an_empty_split_can_be_opened(tmp_path):
    with store.Writer(tmp_path / "x", name="x") as writer:
        writer.add_shard("validation", [])
    split = store.open(tmp_path / "x").split("validation")
    assert split.num_records == 0 and split.lengths.size == 0 and split.read([]) == []
