"""Trees of arrays in flax's msgpack form, as views of the mapped file.

flax's own reader holds the file twice in memory. This decoder maps the file and returns
arrays as views of it. flax extends msgpack: extension 1 is an array and 3 a numpy
scalar, both (shape, dtype name, bytes); 2 is a complex number; arrays larger than 2 GB
are dictionaries of pieces.
"""

import os
import struct
from typing import Any

import ml_dtypes
import numpy as np

from prottrans_jax.files import memory_map

_CHUNKED = "__msgpack_chunked_array__"
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# First byte -> (kind, format of the length that follows).
_SIZED = {
    0xC4: ("bytes", ">B"),
    0xC5: ("bytes", ">H"),
    0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"),
    0xC8: ("extension", ">H"),
    0xC9: ("extension", ">I"),
    0xD9: ("text", ">B"),
    0xDA: ("text", ">H"),
    0xDB: ("text", ">I"),
    0xDC: ("list", ">H"),
    0xDD: ("list", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


def load(path: str | os.PathLike) -> Any:
    """Reads the tree in a file.

    Raises:
      ValueError: The file is truncated, or of another format.
    """
    decoder = _Decoder(memory_map.map_file(path))
    try:
        tree = _join_pieces(decoder.next())
    except (
        struct.error,
        *(IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path}: not flax's msgpack, or truncated, at byte {decoder.at:,} of "
            f"{decoder.data.size:,} ({error})."
        ) from error
    if decoder.at != decoder.data.size:
        raise ValueError(
            f"{path}: {decoder.data.size - decoder.at:,} bytes follow the end of the "
            "tree: not flax's msgpack."
        )
    return tree


class _Decoder:
    """Reads values from bytes in order."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self.at = 0

    def next(self) -> Any:
        first = int(self.data[self.at])
        self.at += 1
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first < 0x90:
            return self._of_size("map", first - 0x80)
        if first < 0xA0:
            return self._of_size("list", first - 0x90)
        if first < 0xC0:
            return self._of_size("text", first - 0xA0)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in _SIZED:
            kind, length = _SIZED[first]
            return self._of_size(kind, self._number(length))
        if 0xD4 <= first <= 0xD8:
            return self._of_size("extension", 1 << (first - 0xD4))
        raise ValueError(f"byte {first:#x} does not begin a value")

    def _of_size(self, kind: str, size: int) -> Any:
        if kind == "map":
            return {self.next(): self.next() for _ in range(size)}
        if kind == "list":
            return [self.next() for _ in range(size)]
        code = self._number(">b") if kind == "extension" else 0
        if self.at + size > self.data.size:
            raise ValueError(f"{size:,} bytes expected")
        content = self.data[self.at : self.at + size]
        self.at += size
        if kind == "text":
            return content.tobytes().decode()
        return _extension(code, content) if kind == "extension" else content

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        (number,) = struct.unpack(form, self.data[self.at : self.at + size].tobytes())
        self.at += size
        return number


def _extension(code: int, content: np.ndarray) -> Any:
    if code not in (1, 2, 3):
        raise ValueError(f"extension {code} is unknown")
    value = _Decoder(content).next()
    if code == 2:
        return complex(*value)
    shape, name, data = value
    if isinstance(name, np.ndarray):
        name = name.tobytes().decode()
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    # Numbers only: not objects, records, text or times.
    if dtype != ml_dtypes.bfloat16 and dtype.kind not in "biufc":
        raise ValueError(f"an array of type {name!r}, which is not of numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    return data.view(dtype).reshape(tuple(shape))


def _join_pieces(tree: object) -> Any:
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {name: _join_pieces(value) for name, value in tree.items()}
    pieces = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
    shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
    return np.concatenate(pieces).reshape(shape)
