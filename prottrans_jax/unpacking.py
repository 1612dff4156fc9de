"""Compressed streams, known by their first bytes: gz of any members, bz2, xz."""

import bz2
from collections.abc import Callable, Iterator
import importlib
import lzma
from typing import IO, Any
import zlib

try:
    # Two to three times as fast as zlib, with the same interface.
    inflate: Any = importlib.import_module("isal.isal_zlib")
except ImportError:
    inflate = zlib

# What damaged streams raise, besides OSError.
ERRORS = (inflate.error, zlib.error, lzma.LZMAError)
# Of stored bytes; gz can unpack to a thousand times as much.
_READ_BYTES = 256 << 10


def unpacked(stream: IO[bytes], digest: Any) -> Iterator[bytes]:
    """Contents of a plain, gz, bz2 or xz stream, which is closed at its end.

    Args:
      stream: As it is stored.
      digest: Updated with the stored bytes; None: none is.

    Raises:
      EOFError: The stream is cut short, or has foreign bytes at its end.
      zlib.error, lzma.LZMAError, OSError: It is damaged; see `ERRORS`.
    """
    make: Callable[[], Any] | None = None
    unpacker: Any = None
    begun = False
    with stream:
        while data := stream.read(_READ_BYTES):
            if digest is not None:
                digest.update(data)
            if not begun:
                begun = True
                make = _unpacker(data)
                unpacker = make and make()
            if make is None:
                yield data
                continue
            while data:
                if unpacker.eof:
                    # Another member, as bgzip and `cat *.gz` make; or padding.
                    if not data.strip(b"\0"):
                        break
                    if _unpacker(data) is None:
                        raise EOFError
                    unpacker = make()
                yield unpacker.decompress(data)
                data = unpacker.unused_data
        if unpacker is not None and not unpacker.eof:
            raise EOFError


def is_compressed(start: bytes) -> bool:
    """Whether a file with this beginning is one that `unpacked` unpacks."""
    return _unpacker(start) is not None


def _unpacker(start: bytes) -> Callable[[], Any] | None:
    """What unpacks a file with this beginning; None if it is plain."""
    if start.startswith(b"\x1f\x8b"):
        return lambda: inflate.decompressobj(16 + zlib.MAX_WBITS)
    if start.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor
    return None
