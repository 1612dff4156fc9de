"""`tfds build` works on a manual FASTA and gives what `prepare` gives."""

import gzip
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cases import record_cases
from prottrans_jax.data.records import (
    dataset_sources,
    input_sources,
    preparing,
    store,
    tfds_builders,
)


def proteins(count):
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    lengths = rng.integers(5, 90, count)
    return {
        b"UniRef_%d" % i: rng.choice(letters, n).tobytes()
        for i, n in enumerate(lengths)
    }


PROTEINS = proteins(300)
FASTA = b"".join(b">%b n=1\n%b\n" % item for item in PROTEINS.items())


def build(cls, tmp_path, manual):
    builder = cls(data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(
        download_dir=tmp_path / "downloads", download_config=config
    )
    return {
        split: {
            e["id"]: e["sequence"]
            for e in tfds.as_numpy(builder.as_dataset(split=split))
        }
        for split in builder.info.splits
    }


@pytest.mark.parametrize("cls, url", [
    (tfds_builders.Uniref50, "https://ftp.uniprot.org/pub/databases/uniprot/current_release/"
     "uniref/uniref50/uniref50.fasta.gz"),
    (tfds_builders.Uniref100, "https://ftp.uniprot.org/pub/databases/uniprot/"
     "current_release/uniref/uniref100/uniref100.fasta.gz"),
    (tfds_builders.Bfd, "https://bfd.mmseqs.com/bfd_metaclust_clu_complete_id30_c90_final_seq."
     "sorted_opt.tar.gz"),
])  # fmt: skip
def test_without_a_manual_file_the_original_address_is_downloaded(cls, url, tmp_path):
    addresses = []

    class Manager:
        @property
        def manual_dir(self):
            raise AssertionError("no manual_dir")

        def download(self, address):
            addresses.append(address)
            return tmp_path / "x"

    (tmp_path / "x").write_bytes(FASTA)
    cls(data_dir=tmp_path)._split_generators(Manager())
    assert addresses == [url]


def test_records_and_splits_are_those_of_prepare(tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "uniref50.fasta.gz").write_bytes(gzip.compress(FASTA))
    built = build(tfds_builders.Uniref50, tmp_path, manual)
    assert {**built["train"], **built["validation"]} == PROTEINS
    options = preparing.Options(validation_fraction=tfds_builders.VALIDATION_SHARE)
    source = input_sources.of_fasta(str(manual / "uniref50.fasta.gz"))
    preparing.prepare([source], tmp_path / "direct", name="x", options=options)
    sources = dataset_sources.of_tfds("uniref50", str(tmp_path / "tfds"))
    preparing.prepare(sources, tmp_path / "through_tfds", name="x")
    for split in ("train", "validation"):
        expected = {n: s for n, s in built[split].items()}
        for folder in ("direct", "through_tfds"):
            opened = store.open(tmp_path / folder).split(split)
            found = {n.encode(): s for n, s in record_cases.iterate(opened)}
            assert found == expected and len(found) > 0


def test_bfd_is_read_from_its_archive(tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    # Two clusters as HH-suite stores them: a consensus, then aligned members.
    a3m = b">c1_consensus\nMKVL\n>P1 x\nM-VL\n>P2\nMKaVL\n\0"
    a3m += b">c2_consensus\nAC\n>P3\nAC\n\0"
    prefix = tfds_builders.BFD_ARCHIVE.removesuffix(".tar.gz")
    with tarfile.open(manual / tfds_builders.BFD_ARCHIVE, "w:gz") as archive:
        for name, data in [("hhm", b"HMM"), ("a3m", a3m)]:
            info = tarfile.TarInfo(f"{prefix}_{name}.ffdata")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    built = build(tfds_builders.Bfd, tmp_path, manual)
    assert {**built["train"], **built.get("validation", {})} == {
        b"P1": b"MVL", b"P2": b"MKAVL", b"P3": b"AC",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_the_archive_are_not_followed(tmp_path, kind):
    manual = tmp_path / "manual"
    manual.mkdir()
    with tarfile.open(manual / tfds_builders.BFD_ARCHIVE, "w:gz") as archive:
        info = tarfile.TarInfo("x_a3m.ffdata")
        info.type, info.linkname = kind, str(tmp_path / "secret")
        archive.addfile(info)
    with pytest.raises(ValueError, match=r"x_a3m.ffdata is a link"):
        build(tfds_builders.Bfd, tmp_path, manual)


def test_tfds_build_on_the_command_line(tmp_path):
    (tmp_path / "uniref100.fasta").write_bytes(FASTA)
    pytest.importorskip("mlcroissant", reason="the tfds command needs mlcroissant")
    command = pathlib.Path(sys.executable).with_name("tfds")
    done = subprocess.run(
        [
            *(command, "build", "uniref100"),
            f"--imports={tfds_builders.__name__}",
            *(f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    dataset = tfds.builder("uniref100", data_dir=tmp_path / "tfds").as_dataset()
    assert sum(len(list(d)) for d in dataset.values()) == 300


def test_the_source_of_a_seqio_task_is_prepared_with_its_splits(tmp_path):
    def examples(split, shuffle_files, seed=None):
        del shuffle_files, seed
        sequences = {"train": [b"MKV", b"acd"], "validation": [b"WWW"]}[split]
        return tf.data.Dataset.from_tensor_slices({"sequence": sequences})

    seqio.TaskRegistry.add(
        "a_task_to_prepare",
        source=seqio.FunctionDataSource(examples, splits=("train", "validation")),
        preprocessors=[lambda dataset: dataset.map(lambda e: {"other": e["sequence"]})],
        output_features={},
    )
    try:
        sources = dataset_sources.of_task("a_task_to_prepare")
        preparing.prepare(sources, tmp_path / "out", name="x")
        with pytest.raises(ValueError, match="no task 'nonsense'"):
            dataset_sources.of_task("nonsense")
    finally:
        seqio.TaskRegistry.remove("a_task_to_prepare")
    opened = store.open(tmp_path / "out")
    assert sorted(record_cases.iterate(opened.split("train"))) == [
        ("a_task_to_prepare/train:0", b"MKV"),
        ("a_task_to_prepare/train:1", b"ACD"),
    ]
    assert opened.split("validation").read([0]) == [b"WWW"]


def test_a_damaged_tfds_file_is_named_with_how_far_it_was_read(tmp_path):
    (tmp_path / "uniref100.fasta").write_bytes(FASTA)
    build(tfds_builders.Uniref100, tmp_path, tmp_path)
    [path] = tmp_path.glob("tfds/**/*-train.tfrecord*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    [source, *_] = dataset_sources.of_tfds("uniref100", str(tmp_path / "tfds"))
    with pytest.raises(
        ValueError, match=r"uniref100/train cannot be read after \d+ examples: .*again"
    ):
        preparing.prepare([source], tmp_path / "out", name="x")


def test_no_sequence_is_in_both_splits_of_a_builder(tmp_path, caplog):
    # Ids apart, the same sequence: of 1,000 copies some 10 are in the other split.
    copies = b"".join(b">UniRef100_C%d\nMKVL\n" % i for i in range(1000))
    (tmp_path / "uniref100.fasta").write_bytes(FASTA + copies)
    built = build(tfds_builders.Uniref100, tmp_path, tmp_path)
    assert b"MKVL" in built["validation"].values()
    assert not set(built["train"].values()) & set(built["validation"].values())
    assert "same sequence as a validation record" in caplog.text


def test_folder_of_tfds_is_no_bucket_and_may_lie_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ValueError, match="in /nowhere/tfds"):
        dataset_sources.of_tfds("uniref50", "~/tfds")
    with pytest.raises(ValueError, match="tfds_data_dir=gs://b: buckets"):
        dataset_sources.of_tfds("uniref50", "gs://b")
