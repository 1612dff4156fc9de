"""Headers of safetensors files that do not describe the file are refused."""

import json

import numpy as np
import pytest

from prottrans_jax.interop import safetensors

BYTES = np.arange(4, dtype=np.float32).tobytes()


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def load(path, header, header_size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if header_size is None else header_size
    path.write_bytes(size.to_bytes(8, "little") + text + BYTES)
    return safetensors.load(path)


def test_arrays_one_after_another_are_read(tmp_path):
    arrays = load(tmp_path / "x", {"b": entry([1], 12, 16), "a": entry([3, 1], 0, 12)})
    assert arrays["a"].tolist() == [[0], [1], [2]] and arrays["b"].tolist() == [3]


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 200_000_000])
def test_a_header_larger_than_the_file_or_the_limit_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"header of {size} bytes in a file of"):
        load(tmp_path / "x", {}, size)


def test_a_header_over_the_limit_is_refused_in_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 20)
    with pytest.raises(ValueError, match="the limit is 20"):
        load(tmp_path / "x", {"a": entry([4], 0, 16)})


def test_a_header_of_nested_brackets_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        load(tmp_path / "x", b"[" * 100_000)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}, "b begins at byte 8, .* 16"),
        ({"a": entry([2], 0, 8)}, "8 bytes follow the last array"),
        ({"a": entry([2], 8, 16)}, "a begins at byte 8, the array before it ends at 0"),
        ({"a": entry([4], 4, 20)}, "has bytes 4 to 20 of 16"),
    ],
    ids=["overlap", "bytes after", "bytes before", "beyond the file"],
)
def test_arrays_that_do_not_fill_the_file_are_refused(tmp_path, header, said):
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "x", header)


@pytest.mark.parametrize(
    "header",
    [
        {"a": "text"},
        {"a": {"dtype": "F32"}},
        {"a": entry([-2, -2], 0, 16)},
        {"a": entry([4.0], 0, 16)},
        {"a": entry([2**32, 2**32], 0, 0), "b": entry([4], 0, 16)},
        {"a": entry([4], 0, 16, ["F32"])},
    ],
    ids=["text", "fields missing", "negative", "fraction", "2^64 elements", "list"],
)
def test_entries_that_describe_no_array_are_refused_with_file_and_name(
    tmp_path, header
):
    with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: .*a"):
        load(tmp_path / "x", header)
