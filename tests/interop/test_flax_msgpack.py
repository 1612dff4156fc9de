"""Files that are not flax's msgpack, or were made to mislead its reader."""

import struct

import pytest

from prottrans_jax.interop import flax_msgpack


def text(value):
    return bytes([0xA0 + len(value)]) + value.encode()


def array(shape, dtype, data, code=1):
    """A map {"a": array} as flax packs it."""
    sizes = b"".join(b"\xd3" + struct.pack(">q", size) for size in shape)
    content = b"\x93" + bytes([0x90 + len(shape)]) + sizes + text(dtype)
    content += b"\xc4" + bytes([len(data)]) + data
    return b"\x81" + text("a") + b"\xc7" + bytes([len(content), code]) + content


def load(path, data):
    path.write_bytes(data)
    return flax_msgpack.load(path)


def test_an_array_is_read(tmp_path):
    tree = load(tmp_path / "x", array([2], "float32", struct.pack("<2f", 1, 2)))
    assert tree["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (array([1], "O", bytes(8)), "type 'O', which is not of numbers"),
        (array([1], "f4,O", bytes(12)), "which is not of numbers"),
        (array([1], "V8", bytes(8)), "which is not of numbers"),
        (array([-1], "float32", bytes(8)), r"an array of shape \[-1\]"),
        (array([2**40], "float32", bytes(8)), "cannot reshape"),
        (array([1], "float32", bytes(4), code=9), "extension 9 is unknown"),
        (array([1], "float32", bytes(4), code=-1 % 256), "extension -1 is unknown"),
        (b"\x91" * 100_000 + b"\xc0", "recursion"),
        (b"\xdd\xff\xff\xff\xff\xc0", "truncated"),
        (b"\x81\x90\xc0", "unhashable"),
        (b"\x81" + text("__msgpack_chunked_array__") + b"\xc3", "'chunks'"),
    ],
    ids=[
        *("objects", "records", "void", "negative", "larger than its bytes"),
        *("unknown extension", "time", "deep", "endless list", "list as key", "pieces"),
    ],
)
def test_what_is_no_tree_of_numbers_is_refused(tmp_path, data, said):
    with pytest.raises(ValueError, match=said) as error:
        load(tmp_path / "x", data)
    assert str(error.value).startswith(f"{tmp_path / 'x'}: not flax's msgpack")
