"""Zarr folders: laid out as the guide says, read by Zarr, old ones readable."""

import hashlib
import json
import pathlib
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import zarr

from prottrans_jax import cli
from prottrans_jax.embed import formats, writers


def _write_zarr(path, arrays, **metadata):
    writer = writers.create(path, metadata)
    for key, array in arrays.items():
        length = array.shape[-2] if array.ndim > 1 else 0
        writer.add(writers.Entry(key, f"{key}|x", "", length, "", array))
    writer.close()
    return path


def test_zarr_arrays_are_those_of_the_guide(tmp_path):
    arrays = {"A": np.ones((2, 3), np.float16), "é": np.zeros((4, 3), np.float16)}
    path = _write_zarr(tmp_path / "out.zarr", arrays, pooling="none", model_name="m")
    group = json.loads((path / "zarr.json").read_text())
    assert group["node_type"] == "group" and group["attributes"]["rows"] == "residues"
    shapes = {
        array.name: json.loads((array / "zarr.json").read_text())["shape"]
        for array in path.iterdir()
        if array.is_dir()
    }
    strings = ["ids", "original_ids", "descriptions", "sequence_sha256", "lengths"]
    assert shapes == {
        **{name: [2] for name in strings},
        "offsets": [3],
        "vectors": [6, 3],
    }


def test_zarr_python_reads_zarr(tmp_path):
    arrays = {f"P{i}": np.full((i, 3), i, np.float16) for i in (2, 5, 1)}
    path = _write_zarr(tmp_path / "out.zarr", arrays, pooling="none")
    group = zarr.open_group(path, mode="r")
    ids, offsets, vectors = group["ids"][:], group["offsets"][:], group["vectors"]
    assert ids.tolist() == list(arrays)
    for i, key in enumerate(ids):
        rows = vectors[offsets[i] : offsets[i + 1]]
        np.testing.assert_array_equal(rows, arrays[key])
    assert group["lengths"][:].tolist() == [2, 5, 1]
    assert group["original_ids"][:].tolist() == ["P2|x", "P5|x", "P1|x"]


def test_zarr_holds_more_proteins_than_a_chunk(tmp_path):
    number = (1 << 14) + 3
    arrays = {f"P{i}": np.array([i % 2048, 1], np.float16) for i in range(number)}
    path = _write_zarr(tmp_path / "out.zarr", arrays, pooling="mean")
    assert len(list((path / "ids" / "c").iterdir())) == 2
    read = {
        e.key: e.array
        for e in formats.entries(path, select={"P0", "P16385"}.__contains__)
    }
    assert {key: array.tolist() for key, array in read.items()} == {
        "P0": [0, 1],
        "P16385": [1, 1],
    }
    assert list(formats.keys(path))[-1] == f"P{number - 1}"


def test_zarr_without_proteins_is_read(tmp_path):
    path = _write_zarr(tmp_path / "out.zarr", {})
    assert list(formats.entries(path)) == []


def test_vectors_of_several_chunks_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"A": 4000, "B": 200, "C": 9000, "D": 5}
    arrays = {key: rng.random((n, 3), np.float32) for key, n in sizes.items()}
    path = _write_zarr(tmp_path / "out.zarr", arrays)
    for entry in formats.entries(path):
        np.testing.assert_array_equal(entry.array, arrays[entry.key])
    (only,) = formats.entries(path, select={"C"}.__contains__)
    np.testing.assert_array_equal(only.array, arrays["C"])


def test_the_same_embeddings_give_the_same_bytes_of_zarr(tmp_path):
    arrays = {f"P{i}": np.full((i, 3), i, np.float16) for i in (2, 5, 1)}
    folders = []
    for name in ("a.zarr", "b.zarr"):
        path = _write_zarr(tmp_path / name, arrays, pooling="none")
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        folders.append({f.relative_to(path): f.read_bytes() for f in files})
        time.sleep(1.1)  # A format that stores the time stores seconds.
    assert folders[0] == folders[1]


def test_zarr_does_not_mix_kinds_of_vectors(tmp_path):
    arrays = {"A": np.ones((2, 3), np.float16), "B": np.ones(3, np.float16)}
    with pytest.raises(ValueError, match=r"B: vectors of shape \(3,\) do not fit"):
        _write_zarr(tmp_path / "out.zarr", arrays)


@pytest.mark.parametrize("array", ["ids", "vectors", "offsets"])
def test_a_flipped_bit_in_zarr_is_noticed(tmp_path, array):
    # Keys that compression makes no shorter: every bit counts.
    keys = (hashlib.sha256(bytes([i])).hexdigest() for i in range(99))
    arrays = {key: np.ones((2, 3), np.float16) for key in keys}
    path = _write_zarr(tmp_path / "out.zarr", arrays)
    [chunk] = [p for p in (path / array / "c").rglob("*") if p.is_file()]
    data = bytearray(chunk.read_bytes())
    data[99] ^= 1
    chunk.write_bytes(data)
    assert cli.main(["verify", str(path)]) == 3


def test_zarr_folders_of_the_earlier_layout_are_read(tmp_path):
    """The folders in the archive were written before the layout changed."""
    with zipfile.ZipFile(pathlib.Path(__file__).with_name("earlier_zarr.zip")) as file:
        file.extractall(tmp_path)
    arrays = {
        "residues": np.arange(12, dtype=np.float16).reshape(4, 3),
        "layers": np.arange(24, dtype=np.float16).reshape(2, 4, 3),
        "proteins": np.arange(3, dtype=np.float32) + 0.5,
    }
    for name, array in arrays.items():
        first, second = formats.entries(tmp_path / f"{name}.zarr")
        assert first[:5] == ("P1", "P1", "some text", 4, "ab" * 32)
        assert second[:5] == ("é%2F2", "é/2", "", 2, "ab" * 32)
        assert first.array.dtype == array.dtype
        np.testing.assert_array_equal(first.array, array)
        # It goes on as the layout of today.
        formats.reformat(tmp_path / f"{name}.zarr", tmp_path / f"{name}.new.zarr")
        again = list(formats.entries(tmp_path / f"{name}.new.zarr"))
        assert [entry[:5] for entry in again] == [first[:5], second[:5]]
        np.testing.assert_array_equal(again[1].array, second.array)


def test_zarr_folders_written_without_the_library_are_read(tmp_path):
    """The folders in the archive were written with tensorstore; no zeros are stored."""
    archive = pathlib.Path(__file__).with_name("tensorstore_zarr.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    arrays = {
        "residues": np.arange(12, dtype=np.float16).reshape(4, 3),
        "layers": np.arange(24, dtype=np.float16).reshape(2, 4, 3),
        "proteins": np.arange(3, dtype=np.float32) + 0.5,
    }
    for name, array in arrays.items():
        path = tmp_path / f"{name}.zarr"
        assert cli.main(["verify", str(path)]) == 0
        first, second = formats.entries(path)
        length = 0 if name == "proteins" else 4
        assert first[:5] == ("A", "A|x", "some text", length, "ab" * 32)
        assert second[:3] == ("é", "é|x", "")
        assert first.array.dtype == array.dtype
        np.testing.assert_array_equal(first.array, array)
        assert not second.array.any()
        formats.reformat(path, tmp_path / f"{name}.new.zarr")
        again = list(formats.entries(tmp_path / f"{name}.new.zarr"))
        assert [entry[:5] for entry in again] == [first[:5], second[:5]]
        np.testing.assert_array_equal(again[0].array, array)


def test_zarr_without_its_library_is_refused_before_any_work(
    fasta_file, model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "zarr", None)  # Its import fails.
    output = tmp_path / "out.zarr"
    command = ["embed", "-m", str(model_folder), "-i", str(fasta_file)]
    assert cli.main([*command, "-o", str(output)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'prottrans_jax[zarr]'" in line
    assert not list(tmp_path.glob("out.zarr*"))


_ZARR_ON_A_FULL_DISK = """
import errno, pathlib, resource, signal, sys
import numpy as np
from prottrans_jax.embed import writers

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
writer = writers.create(pathlib.Path(sys.argv[1]), {})
try:
    array = np.ones((64, 512), np.float32)
    writer.add(writers.Entry("A", "A", "", 64, "", array))
    writer.close()
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_zarr_on_a_full_disk_raises_oserror(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _ZARR_ON_A_FULL_DISK, tmp_path / "out.zarr"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "EFBIG\n"
