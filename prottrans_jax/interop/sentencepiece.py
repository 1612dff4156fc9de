"""Reads the pieces of a SentencePiece model without the library.

A model is a protocol buffer (`sentencepiece_model.proto`). The ids of residues depend
on two of its fields: the pieces, and whether a space is put before a text.
"""

from collections.abc import Iterator
import enum
import pathlib
from typing import NamedTuple

SPACE = "\u2581"  # SentencePiece's mark for a space; pieces that begin a word have it.
# Field numbers of the messages.
_PIECES, _NORMALIZER = 1, 3  # ModelProto
_TEXT, _KIND = 1, 3  # ModelProto.SentencePiece
_ADD_DUMMY_PREFIX = 3  # NormalizerSpec
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Kind(enum.IntEnum):
    """Kind of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """A piece; its id is its position in the model."""

    text: str
    kind: Kind


class Model(NamedTuple):
    """The parts of a model that determine ids.

    Attributes:
      pieces: In the order of their ids.
      add_space: Whether a space is put before a text.
    """

    pieces: tuple[Piece, ...]
    add_space: bool


def read(path: pathlib.Path) -> Model:
    """Reads a file such as `spiece.model`.

    Raises:
      ValueError: It is not a SentencePiece model, or truncated.
    """
    try:
        model = _parse(memoryview(path.read_bytes()))
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is not a SentencePiece model, or truncated ({error}). Is it the "
            "file itself, and not a Git LFS pointer?"
        ) from error
    if not model.pieces:
        raise ValueError(f"{path} is a SentencePiece model without pieces.")
    return model


def _parse(data: memoryview) -> Model:
    pieces = []
    add_space = True
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_message(value)))
        elif number == _NORMALIZER:
            for field, flag in _fields(_message(value)):
                if field == _ADD_DUMMY_PREFIX:
                    add_space = bool(flag)
    return Model(tuple(pieces), add_space)


def _piece(data: memoryview) -> Piece:
    text, kind = "", Kind.NORMAL
    for number, value in _fields(data):
        if number == _TEXT:
            text = bytes(_message(value)).decode("utf-8")
        elif number == _KIND:
            assert isinstance(value, int)
            kind = Kind(value)
    return Piece(text, kind)


def _message(value: "int | memoryview") -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number instead of a message")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """(number, value) of each field of a message; a value is a number or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"byte {at - 1} does not begin a field")
        if at + size > len(data):
            raise ValueError(f"{at + size - len(data)} bytes are missing")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits per byte, lowest first, and the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
