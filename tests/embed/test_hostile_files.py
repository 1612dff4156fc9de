"""Embedding files that were made to exhaust the memory or to reach other files."""

import csv
import io
import json
import os
import zipfile

import h5py
import numpy as np
import pytest

from prottrans_jax.embed import formats, keys, writers

HUGE = 1 << 30


def npy(shape, data=b""):
    """An array's bytes in NumPy's format, with the shape that its header claims."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


def npz(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def read(path):
    return {entry.key: entry.array for entry in formats.entries(path)}


def hdf5_without_data(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (HUGE, 1024), "f4", chunks=(1024, 1024))
    return path


def hdf5_of_zeros(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "a", data=np.zeros((1 << 15, 1024), "f4"), compression="gzip"
        )
    return path


def npz_without_data(tmp_path):
    return npz(tmp_path / "x.npz", a=npy((HUGE, 1024)))


def npz_of_zeros(tmp_path):
    zeros = npy((1 << 15, 1024), bytes(4 << 25))
    return npz(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, a=zeros)


def parquet_of_zeros(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(original_id=["a"], description=[""], sequence_sha256=[""])
    columns |= dict(id=["a"], length=[2], shape=[[1 << 15, 1024]])
    table = pa.table(columns | dict(embedding=[np.zeros(1 << 25, "f4")]))
    parquet.write_table(table, tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def zarr_with(tmp_path, name, **changes):
    path = tmp_path / "x.zarr"
    writer = writers.create(path, {})
    writer.add(writers.Entry("a", "a", "", 2, "", np.ones((2, 3), "f4")))
    writer.close()
    metadata = json.loads((path / name / "zarr.json").read_text())
    (path / name / "zarr.json").write_text(json.dumps(metadata | changes))
    return path


def zarr_of_huge_chunks(tmp_path):
    pytest.importorskip("zarr")
    grid = {"name": "regular", "configuration": {"chunk_shape": [HUGE, 3]}}
    return zarr_with(tmp_path, "vectors", chunk_grid=grid)


def zarr_of_huge_lengths(tmp_path):
    pytest.importorskip("zarr")
    return zarr_with(tmp_path, "lengths", shape=[HUGE])


def test_hdf5_that_takes_its_data_from_other_files_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((2, 3), "f4")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        external = [(str(tmp_path / "secret"), 0, 24)]
        file.create_dataset("a", (2, 3), "f4", external=external)
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (2, 3))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("a", layout)
    for name in ("raw.h5", "virtual.h5"):
        with pytest.raises(ValueError, match="a is not a plain floating-point dataset"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "make",
    [
        *(hdf5_without_data, hdf5_of_zeros, npz_without_data, npz_of_zeros),
        *(parquet_of_zeros, zarr_of_huge_chunks, zarr_of_huge_lengths),
    ],
)
def test_an_array_far_larger_than_its_file_is_refused_before_it_is_read(tmp_path, make):
    with pytest.raises(ValueError, match=r"would take [0-9,]+ bytes of memory"):
        read(make(tmp_path))


def test_texts_of_zarr_are_counted_before_they_are_read(tmp_path):
    pytest.importorskip("zarr")
    with pytest.raises(ValueError, match="differ in the number of proteins"):
        read(zarr_with(tmp_path, "ids", shape=[HUGE]))


def test_metadata_of_zarr_nested_too_deeply_is_damage(tmp_path):
    pytest.importorskip("zarr")
    path = zarr_with(tmp_path, "ids")
    (path / "ids" / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{path} is damaged: the array ids"):
        read(path)


def test_pickled_objects_in_npz_are_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Evil()], object), allow_pickle=True)
    path = npz(tmp_path / "x.npz", a=buffer.getvalue())
    with pytest.raises(ValueError, match="are not vectors: type object"):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(), None], ids=["a number", "records"])
def test_what_is_no_array_of_numbers_is_refused(tmp_path, shape):
    array = np.zeros(2, "f4,i4") if shape is None else np.float32(3)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    with pytest.raises(ValueError, match="the vectors of a are not vectors"):
        read(npz(tmp_path / "x.npz", a=buffer.getvalue()))


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".zarr"])
def test_keys_that_are_paths_are_escaped_in_a_reformatted_file(tmp_path, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    vectors = np.ones((2, 3), "f4").tobytes()
    members = {"../../x": npy((2, 3), vectors), "/y": npy((2, 3), vectors)}
    source = npz(tmp_path / "x.npz", **members)
    output = tmp_path / "folder" / f"out{suffix}"
    formats.reformat(source, output)
    assert set(formats.keys(output)) == {"%2E.%2F..%2Fx", "%2Fy"}
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "folder"}


def test_a_cell_of_csv_over_the_limit_names_file_and_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,0\n" + "a" * 200_000 + ",1\n")
    before = csv.field_size_limit(131_072)  # Of the process; other tests raise it.
    try:
        with pytest.raises(ValueError, match=f"{path} is damaged: line 2 .* limit"):
            read(path)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]"])
def test_provenance_that_is_no_object_is_named(tmp_path, content):
    path = npz(tmp_path / "x.npz", a=npy((1, 1), bytes(4)))
    (tmp_path / "x.npz.json").write_text(content)
    with pytest.raises(ValueError, match=r"x.npz.json is not "):
        formats.describe(path)


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", ".", "..", "a\0b", "a\\b", "~/x", "..\\x", ".ssh"]
)
def test_an_escaped_id_is_a_plain_file_name(name):
    key = keys.escape(name)
    assert not set(key) & set("/\\\0") and not key.startswith(".")
    assert keys.safe(name) == (name if name == key else key)


def test_safe_keys_stay_as_they_are():
    for key in ("P12345", "a%2Fb", "a.b", "50%", "sp|P1|X"):
        assert keys.safe(key) == key


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".csv", ".zarr"])
def test_outputs_have_the_permissions_of_the_users_umask(tmp_path, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    source = npz(tmp_path / "x.npz", a=npy((3,), bytes(12)))
    before = os.umask(0o077)
    try:
        formats.reformat(source, tmp_path / f"out{suffix}")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.name.startswith("out")]
    assert len(written) >= 2
    for path in written:
        assert path.stat().st_mode & 0o077 == 0, path
