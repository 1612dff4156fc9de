"""Damaged embedding files: `verify` names the protein or the part of the file."""

import numpy as np
import pytest

from prottrans_jax import cli
from prottrans_jax.embed import writers


def _damaged(content, at):
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def _write(path, **arrays):
    writer = writers.create(path, {"pooling": "none"})
    for key, array in arrays.items():
        writer.add(writers.Entry(key, key, "", len(array), "", array))
    writer.close()


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".zarr"])
def test_damaged_protein_is_named_in_every_format(suffix, tmp_path, capsys):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    sizes = {"A": 2, "B": 3, "C": 5}
    arrays = {key: rng.random((n, 7), np.float32) for key, n in sizes.items()}
    path = tmp_path / f"out{suffix}"
    _write(path, **arrays)
    place = path / "vectors/c/0/0" if suffix == ".zarr" else path
    data = place.read_bytes()
    place.write_bytes(_damaged(data, data.index(arrays["B"].tobytes()) + 9))
    assert cli.main(["verify", str(path)]) == 3
    # A checksum is of a page or chunk: what is named begins with its first protein.
    named = {
        ".npz": "the vectors of B cannot be read",
        ".parquet": "row group 0 of 1, counted from 0 (3 proteins from A to C)",
        ".zarr": "the vectors of A cannot be read",
    }[suffix]
    said = capsys.readouterr().out
    assert f"{path} is damaged: {named}" in said
    assert len(said.splitlines()) == 1


def test_proteins_of_a_damaged_row_group_are_named_alone(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    rng = np.random.default_rng(0)
    arrays = {f"P{i}": rng.random((1, 5), np.float32) for i in range(258)}
    _write(path, **arrays)
    data = path.read_bytes()
    path.write_bytes(_damaged(data, data.index(arrays["P257"].tobytes()) + 9))
    assert cli.main(["verify", str(path)]) == 3
    said = capsys.readouterr().out
    assert "row group 1 of 2, counted from 0 (2 proteins from P256 to P257)" in said


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("vectors/c/0/0", "the vectors of A"),
        ("offsets/c/0", "the array offsets"),
        ("lengths/zarr.json", "the array lengths"),
        ("ids/c/0", "the array ids cannot be read"),
    ],
)
def test_lost_chunk_of_zarr_is_damage(lost, named, tmp_path, capsys):
    path = tmp_path / "out.zarr"
    _write(path, A=np.ones((2, 7), np.float32), B=np.ones((3, 7), np.float32))
    (path / lost).unlink()
    assert cli.main(["verify", str(path)]) == 3
    said = capsys.readouterr().out
    assert "is damaged" in said and named in said


def test_line_of_csv_that_is_cut_off_is_named(tmp_path, capsys):
    path = tmp_path / "out.csv"
    path.write_text("id,0,1\nA,0.5,1\nB,2\n")
    assert cli.main(["verify", str(path)]) == 3
    said = capsys.readouterr().out
    assert "the vector of B in line 3" in said and "1 numbers, the header has 2" in said
