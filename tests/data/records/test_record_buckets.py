"""Prepared folders in buckets: written, read through a cache, checked."""

import gzip
import signal
import subprocess
import sys

from absl import logging
import numpy as np
import pytest

from cases import stores
from prottrans_jax.data.records import (
    corpora,
    input_sources,
    preparing,
    shard_cache,
    store,
)
from prottrans_jax.files import folders, locks, ownership, paths

OPTIONS = preparing.Options(num_shards=5, validation_fraction=0.1)
# Prepares, and dies before the manifest is uploaded.
KILLED = """
import os, signal, sys
from prottrans_jax.data.records import input_sources, preparing
from prottrans_jax.files import folders

upload = folders.upload
def upload_or_die(source, target):
    if source.name == "manifest.json":
        os.kill(os.getpid(), signal.SIGKILL)
    upload(source, target)
folders.upload = upload_or_die
preparing.prepare([input_sources.of_fasta(sys.argv[1])], sys.argv[2], name="toy")
"""


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    path = tmp_path_factory.mktemp("input") / "x.fasta"
    with path.open("wb") as file:
        for i, length in enumerate(rng.integers(50, 700, 600)):
            file.write(b">P%d\n%s\n" % (i, rng.choice(letters, length).tobytes()))
    return path


@pytest.fixture(scope="module")
def local(fasta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "toy"
    prepare(fasta, folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(shard_cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepare(source, output, **kwargs):
    sources = [input_sources.of_fasta(str(source))]
    return preparing.prepare(sources, output, name="toy", options=OPTIONS, **kwargs)


@pytest.fixture
def uploaded(local, bucket):
    folders.upload(local, f"{bucket}/toy")
    return f"{bucket}/toy"


def shards_of(folder):
    return [shard.file for shard in store.open(folder).manifest.splits["train"].shards]


def downloads(proxy, name):
    """Requests for the content; Google's has others, for the object and its folder."""
    return sum(
        m == "GET" and name in p and ("/b/" not in p or "alt=media" in p)
        for m, p in proxy.requests
    )


def test_a_folder_prepared_in_a_bucket_is_that_of_a_local_run(fasta, local, bucket):
    packed = paths.place(f"{bucket}/x.fasta.gz", "-i")
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    url = f"{bucket}/toy"
    prepare(packed, url)
    made, expected = store.open(url).manifest, store.open(local).manifest
    assert made.splits == expected.splits
    assert dict(made.inputs[0])["path"] == str(packed)
    root = paths.place(url, "-o")
    assert folders.files_below(root) == folders.files_below(local)
    assert store.verify(url) == []
    assert [path.name for path in folders.children(root.parent)] == [
        "toy",
        "x.fasta.gz",
    ]
    assert corpora.find("fasta", url) == corpora.find("toy", bucket) == root
    # Finished folders are replaced only on request.
    with pytest.raises(ValueError, match="is finished already"):
        prepare(packed, url)
    assert prepare(packed, url, overwrite=True).manifest.splits == made.splits


def test_records_are_those_of_a_local_copy_and_fetched_once(local, uploaded, faults):
    index = np.random.default_rng(1).integers(0, 500, 200)
    expected = store.open(local).split("train")
    for _ in range(2):
        split = store.open(uploaded).split("train")
        assert split.fingerprint == expected.fingerprint
        assert split.read(index) == expected.read(index)
        assert (split.lengths == expected.lengths).all()
    for name in shards_of(local):
        assert downloads(faults, name) == 1


def test_a_cache_that_is_too_small_gives_the_same_records(
    local, uploaded, cache, monkeypatch, caplog
):
    sizes = [(local / name).stat().st_size for name in shards_of(local)]
    limit = 2 * max(sizes) + 10_000
    monkeypatch.setenv(shard_cache.GIB, str(limit / 2**30))
    expected = store.open(local).split("train")
    split = store.open(uploaded).split("train")
    rng = np.random.default_rng(2)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            index = rng.integers(0, 500, 3)
            assert split.read(index) == expected.read(index)
    assert sum(file.stat().st_size for file in cache.iterdir()) <= limit
    assert "shards will be fetched again and again" in caplog.text
    index = rng.integers(0, 500, 200)
    assert split.read(index) == expected.read(index)


@pytest.mark.parametrize("setting", ["0", "-1", "many"])
def test_a_bound_that_is_no_size_is_refused(uploaded, monkeypatch, setting):
    monkeypatch.setenv(shard_cache.GIB, setting)
    with pytest.raises(ValueError, match=f"{shard_cache.GIB}='{setting}'"):
        store.open(uploaded).split("train")


def test_fetches_that_fail_or_are_cut_short_are_tried_again(local, uploaded, faults):
    name = shards_of(local)[0]
    cut = faults.add(stores.Fault(lambda m, p: m == "GET" and name in p, keep=100))
    lost = faults.add(stores.Fault(lambda m, p: m == "GET" and name in p, status=503))
    slow = faults.add(stores.Fault(lambda m, p: m == "GET" and name in p, delay_s=0.5))
    split, expected = (store.open(x).split("train") for x in (uploaded, local))
    assert split.read(range(100)) == expected.read(range(100))
    assert cut.seen == lost.seen == slow.seen == 1


def test_a_wrong_object_is_never_read_and_named_after_the_last_try(
    local, uploaded, cache, caplog
):
    name = shards_of(local)[0]
    content = bytearray((local / name).read_bytes())
    content[len(content) // 2] ^= 1
    paths.place(f"{uploaded}/{name}", "-o").write_bytes(bytes(content))
    split = store.open(uploaded).split("train")
    with caplog.at_level(logging.WARNING):
        with pytest.raises(store.DamageError) as error:
            split.read([0])
    said = str(error.value)
    assert said.startswith(f"{uploaded}/{name} is damaged: ") and "3 tries" in said
    assert f"{uploaded}/{name}" in caplog.text and "trying again" in caplog.text
    assert not any(f"{name}" in path.name for path in cache.iterdir())
    assert store.verify(uploaded)[0].startswith(f"{uploaded}/{name}: its SHA-256")


def test_a_damaged_copy_in_the_cache_is_fetched_again(local, uploaded, cache):
    expected = store.open(local).split("train")
    assert store.open(uploaded).split("train").read(range(500))
    for copy in cache.iterdir():
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 0xFF
        copy.write_bytes(content)
    split = store.open(uploaded).split("train")
    assert split.read(range(500)) == expected.read(range(500))


def test_a_missing_shard_is_named_at_the_start(local, uploaded):
    name = shards_of(local)[1]
    paths.place(f"{uploaded}/{name}", "-o").unlink()
    with pytest.raises(store.DamageError, match=f"{uploaded}/{name} is missing"):
        store.open(uploaded).split("train")


def test_a_killed_upload_is_unfinished_and_replaced_by_the_next_run(fasta, bucket):
    url = f"{bucket}/toy"
    killed = subprocess.run([sys.executable, "-c", KILLED, fasta, url], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert folders.files_below(paths.place(url, "-o"))
    with pytest.raises(ValueError, match="is not a finished folder of records"):
        store.open(url)
    prepare(fasta, url)
    assert store.verify(url) == []


def test_a_failed_upload_leaves_nothing_behind(fasta, bucket, faults):
    def is_manifest(method, path):
        return method in ("POST", "PUT") and "manifest.json" in path

    faults.add(stores.Fault(is_manifest, status=403))
    with pytest.raises(PermissionError):
        prepare(fasta, f"{bucket}/toy")
    assert folders.files_below(paths.place(bucket, "-o")) == []


def test_two_preparations_at_once_and_folders_of_others_are_refused(fasta, bucket):
    url = f"{bucket}/toy"
    with locks.acquire(f"{url}.lock", output=url, advice=""):
        with pytest.raises(locks.LockedError, match="is being written by process"):
            prepare(fasta, url)
    thesis = paths.place(f"{url}/thesis.txt", "-o")
    thesis.write_bytes(b"text")
    with pytest.raises(ownership.ForeignError):
        prepare(fasta, url, overwrite=True)
    assert thesis.read_bytes() == b"text"
    with pytest.raises(paths.PathError, match="name a folder in the bucket"):
        prepare(fasta, f"{bucket.partition('://')[0]}://{stores.BUCKET}")
