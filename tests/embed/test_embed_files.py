"""Output files: read by the rules of other packages, reformatted, verified."""

import errno
import hashlib
import io
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from cases.embed_cases import embed_into, random_proteins, write_fasta
import prottrans_jax
from prottrans_jax import cli
from prottrans_jax.embed import formats, job, settings, shards, verifying, writers


def test_protspace_reads_vectors_per_protein(encoder, fasta_file, proteins, tmp_path):
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", per_protein=True)
    # ProtSpace's `load_h5`: every dataset at the root or in a group of the root is a
    # protein; with two axes it must have one row; the name stands at the root.
    rows = {}
    with h5py.File(path) as file:
        assert file.attrs["model_name"] == encoder.name
        for key, item in file.items():
            datasets = item.items() if isinstance(item, h5py.Group) else [(key, item)]
            for name, dataset in datasets:
                assert dataset.ndim == 1 or dataset.shape[0] == 1
                rows[name] = dataset[()].astype(np.float32)
    assert rows.keys() == proteins.keys()
    assert not any(np.isnan(row).any() for row in rows.values())


_ON_A_FULL_DISK = """
import errno, pathlib, resource, sys
import numpy as np
from prottrans_jax.embed import writers

# As a disk of 3 MiB; what HDF5 makes of that ends the process.
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
writer = writers.create(pathlib.Path(sys.argv[1]), {"model_name": "m"})
try:
    for i in range(5000):
        entry = writers.Entry(f"P{i}", "", "", 1, "", np.ones(512, np.float16))
        writer.add(entry)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    print(i)
finally:
    writer.close()
"""


def test_hdf5_on_a_full_disk_is_an_error_and_what_is_there_can_be_read(tmp_path):
    path = tmp_path / "out.h5"
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert len(list(formats.keys(path))) == int(done.stdout) > 500


def test_reformat_on_a_full_disk_names_the_output_and_leaves_nothing(
    encoder, fasta_file, tmp_path, monkeypatch
):
    source = embed_into(encoder, fasta_file, tmp_path / "out.h5")
    folder = tmp_path / "full"
    folder.mkdir()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*copy\.h5"):
        formats.reformat(source, folder / "copy.h5")
    assert not list(folder.iterdir())


def test_reformat_creates_the_folder_of_its_output(encoder, fasta_file, tmp_path):
    source = embed_into(encoder, fasta_file, tmp_path / "out.h5")
    copy = tmp_path / "new" / "folder" / "copy.npz"
    assert formats.reformat(source, copy) == len(list(formats.keys(copy)))


def test_hdf5_file_has_no_unused_space(tmp_path):
    path = tmp_path / "out.h5"
    writer = writers.create(path, {})
    array = np.ones((7, 5), np.float32)
    writer.add(writers.Entry("P1", "", "", 7, "", array))
    writer.close()
    size = path.stat().st_size
    assert 140 < size < 8192
    # HDF5's own account of it.
    with h5py.File(path) as file:
        assert file.id.get_filesize() == size
        np.testing.assert_array_equal(file["P1"][()], array)


def test_bio_embeddings_reads_keys_by_md5(encoder, fasta_file, proteins, tmp_path):
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", key="md5")
    with h5py.File(path) as file:
        for name, residues in proteins.items():
            dataset = file[hashlib.md5(residues.encode()).hexdigest()]
            assert dataset.attrs["original_id"] == name
            assert dataset.shape == (len(residues), 12)


def test_biotrainer_reads_its_keys(encoder, fasta_file, proteins, tmp_path):
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", key="biotrainer")
    expected = {
        hashlib.sha256(f"{residues}_{len(residues)}".encode()).hexdigest(): name
        for name, residues in proteins.items()
    }
    with h5py.File(path) as file:
        # `read_id2emb` and `filter_h5_with_fasta` go by this attribute.
        actual = {key: value.attrs["original_id"] for key, value in file.items()}
    assert actual == expected


def test_uniprot_headers_give_accessions(encoder, tmp_path):
    names = ["sp|P12345|AATM_RABIT Aspartate OS=x", "tr|A0A1|A0A1_X y", "UniRef50_Q6 z"]
    source = write_fasta(tmp_path / "x.fasta", dict.fromkeys(names, "MKTAY"))
    path = embed_into(encoder, source, tmp_path / "out.h5")
    with h5py.File(path) as file:
        assert sorted(file) == ["A0A1", "P12345", "UniRef50_Q6"]
        attributes = file["P12345"].attrs
        assert attributes["original_id"] == "sp|P12345|AATM_RABIT"
        assert attributes["description"] == "Aspartate OS=x"
        assert attributes["length"] == 5
        assert attributes["sequence_sha256"] == hashlib.sha256(b"MKTAY").hexdigest()


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".zarr"])
@pytest.mark.parametrize("kind", ["per_residue", "per_protein"])
def test_formats_hold_the_same(encoder, fasta_file, tmp_path, suffix, kind):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    options = {kind: True}
    first = embed_into(encoder, fasta_file, tmp_path / "out.h5", **options)
    other = embed_into(encoder, fasta_file, tmp_path / f"out{suffix}", **options)
    expected = {entry.key: entry for entry in formats.entries(first)}
    actual = {entry.key: entry for entry in formats.entries(other)}
    assert actual.keys() == expected.keys()
    for key, entry in actual.items():
        assert entry.array.dtype == expected[key].array.dtype
        np.testing.assert_array_equal(entry.array, expected[key].array)
        if suffix != ".npz":
            assert entry[:5] == expected[key][:5]
    # Nothing to do the second time.
    again = job.embed_fasta(encoder, fasta_file, other, settings.Options(**options))
    assert (again.embedded, again.reused) == (0, 40)


def test_csv_holds_vectors_per_protein_that_read_back(
    encoder, fasta_file, proteins, tmp_path
):
    path = embed_into(encoder, fasta_file, tmp_path / "out.csv", per_protein=True)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    assert rows[0] == ["id", *map(str, range(12))] and len(rows) == 41
    vectors = encoder.embed(list(proteins.values()), pool="mean")
    pooled = dict(zip(proteins, vectors, strict=True))
    for name, *numbers in rows[1:]:
        np.testing.assert_allclose(
            np.array(numbers, np.float32), pooled[name], atol=1e-5
        )
    with pytest.raises(ValueError, match="one vector per protein"):
        embed_into(encoder, fasta_file, tmp_path / "residues.csv")


@pytest.mark.parametrize("suffix", [".tsv", ".TSV"])
def test_tsv_is_separated_by_tabs_in_either_case(
    encoder, fasta_file, proteins, suffix, tmp_path
):
    path = tmp_path / f"out{suffix}"
    embed_into(encoder, fasta_file, path, per_protein=True)
    assert path.read_text().startswith("id\t0\t1\t")
    assert [entry.key for entry in formats.entries(path)] == list(proteins)


def test_every_flipped_bit_of_vectors_is_noticed(encoder, tmp_path):
    source = write_fasta(tmp_path / "x.fasta", random_proteins(6, seed=2))
    for suffix in (".h5", ".npz", ".parquet"):
        path = embed_into(encoder, source, tmp_path / f"out{suffix}")
        before = {e.key: e.array.tobytes() for e in formats.entries(path)}
        data = path.read_bytes()
        at = data.find(next(iter(before.values()))[:24])
        assert at > 0
        path.write_bytes(data[: at + 9] + bytes([data[at + 9] ^ 1]) + data[at + 10 :])
        assert cli.main(["verify", str(path)]) == 3


def test_links_groups_and_odd_types_are_not_followed(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones(3)
    for name, make in {
        "external": lambda f: f.__setitem__("P1", h5py.ExternalLink(secret, "x")),
        "soft": lambda f: f.__setitem__("P1", h5py.SoftLink("/other")),
        "group": lambda f: f.create_group("P1"),
        "text": lambda f: f.__setitem__("P1", "not numbers"),
    }.items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(ValueError, match="P1"):
            list(formats.entries(path))


def test_layers_are_the_first_axis(encoder, fasta_file, proteins, tmp_path):
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5", layers="0,-1")
    for entry in formats.entries(path):
        assert entry.array.shape == (2, len(proteins[entry.key]), 12)
    mean = embed_into(
        encoder, fasta_file, tmp_path / "m.h5", layers="last4", output_dtype="float32"
    )
    actual = {entry.key: entry.array for entry in formats.entries(mean)}
    every = encoder.embed([proteins["P1"]], layers="all")[0]
    np.testing.assert_allclose(actual["P1"], every.mean(axis=0), atol=1e-5)


def test_npz_is_what_zipfile_writes(tmp_path):
    """The zip directory is kept in a temporary file until the end."""
    arrays = {f"é{number}": np.full((number, 2), number) for number in range(5)}
    writer = writers.create(tmp_path / "out.npz", {})
    with zipfile.ZipFile(tmp_path / "right.npz", "w") as right:
        for key, array in arrays.items():
            writer.add(writers.Entry(key, "", "", len(array), "", array))
            npy = io.BytesIO()
            np.save(npy, array)
            right.writestr(zipfile.ZipInfo(f"{key}.npy"), npy.getvalue())
    writer.close()
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "right.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_several_layers_per_protein_are_not_taken_for_residues(
    encoder, fasta_file, proteins, tmp_path
):
    pooled = tmp_path / "pooled.h5"
    embed_into(encoder, fasta_file, pooled, per_protein=True, layers="0,-1")
    assert formats.describe(pooled).kind == "per protein, several layers"
    assert not verifying.check_file(
        pooled, verifying.expected(fasta_file, "auto")[0]
    ).faults
    again = tmp_path / "again.h5"
    formats.reformat(pooled, again, pool="mean")
    before = {entry.key: entry.array for entry in formats.entries(pooled)}
    for entry in formats.entries(again):
        np.testing.assert_array_equal(entry.array, before[entry.key])


def test_truncated_proteins_are_sound(encoder, fasta_file, tmp_path):
    path = embed_into(
        encoder, fasta_file, tmp_path / "out.h5", max_length=20, long="truncate"
    )
    expected, _ = verifying.expected(fasta_file, "auto")
    assert verifying.check_file(path, expected).faults == []
    with h5py.File(path, "r+") as file:
        key = max(file, key=lambda name: file[name].shape[0])
        rows = file[key][:19]
        attributes = dict(file[key].attrs)
        del file[key]
        file[key] = rows
        file[key].attrs.update(attributes)
    assert verifying.check_file(path, expected).faults == [
        f"{key}: 19 rows for 20 residues"
    ]


def test_pooled_file_records_its_pooling_and_no_run(encoder, fasta_file, tmp_path):
    path = embed_into(encoder, fasta_file, tmp_path / "out.h5")
    pooled = tmp_path / "pooled.h5"
    assert formats.reformat(path, pooled, pool="mean") == 40
    about = formats.metadata(pooled)
    assert about["pooling"] == "mean" and "prottrans_run" not in about
    assert about["model_name"] == encoder.name
    assert formats.describe(pooled).kind == "per protein"
    # Not its own: vectors of the whole input may not be mixed into it.
    assert formats.reformat(path, tmp_path / "pooled.npz", pool="mean") == 40
    for output in (pooled, tmp_path / "pooled.npz"):
        with pytest.raises(shards.OtherRunError, match="does not record"):
            embed_into(encoder, fasta_file, output, per_protein=True)
    npz = tmp_path / "out.npz"
    formats.reformat(path, npz)
    assert formats.metadata(npz)["weights_fingerprint"] == encoder.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_golden_vectors_are_compared_by_cosine_in_less_than_float32(
    encoder, model_folder, tmp_path, dtype
):
    proteins = random_proteins(5, longest=30)
    source = tmp_path / "uniprot.fasta"
    text = "".join(f">sp|Q{i}|N_X some\n{x}\n" for i, x in enumerate(proteins.values()))
    source.write_text(text + ">sp|Q9|N_X other\nMKTAYW\n")
    golden = tmp_path / "golden.h5"
    with h5py.File(golden, "w") as file:
        for i, residues in enumerate(proteins.values()):
            file[f"Q{i}"] = encoder.embed([residues])[0]
    results, others = verifying.compare(encoder, golden, source)
    assert len(results) == 5 and all(result.passed for result in results)
    assert others == ["sp|Q9|N_X"]
    coarse = prottrans_jax.load_encoder(model_folder, dtype=dtype)
    results, _ = verifying.compare(coarse, golden, source)
    for result in results:
        assert result.largest > 1e-3  # Would not pass as float32.
        assert result.passed == (result.cosine >= 0.999)
    assert any(result.passed for result in results)


@pytest.mark.parametrize("layers", ["-1", "0,-1"])
@pytest.mark.parametrize("kind", ["per_residue", "per_protein"])
@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_vectors_come_back_in_their_shape(
    encoder, tmp_path, proteins, suffix, kind, layers
):
    source = write_fasta(tmp_path / "x.fasta", dict(list(proteins.items())[:4]))
    options = {kind: True, "layers": layers}
    first = embed_into(encoder, source, tmp_path / "out.h5", **options)
    other = embed_into(encoder, source, tmp_path / f"out{suffix}", **options)
    right = {entry.key: entry.array for entry in formats.entries(first)}
    for entry in formats.entries(other):
        np.testing.assert_array_equal(entry.array, right[entry.key])


def test_parquet_has_the_columns_of_the_guide(encoder, fasta_file, proteins, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = embed_into(encoder, fasta_file, tmp_path / "out.parquet")
    table = parquet.read_table(path)
    assert table.column_names == [
        *("id", "original_id", "description", "length", "sequence_sha256"),
        *("shape", "embedding"),
    ]
    assert table["id"].to_pylist() == list(proteins)
    for row in table.to_pylist():
        assert row["shape"] == [row["length"], 12]
        assert len(row["embedding"]) == 12 * row["length"]
