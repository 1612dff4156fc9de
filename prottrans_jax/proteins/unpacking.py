"""Decompresses gz, bz2, xz, Zstandard, LZ4 and zip, recognised by first bytes."""

import bz2
from collections.abc import Callable, Iterator
import importlib
import lzma
import sys
import tempfile
from typing import IO, Any, Protocol
import zipfile
import zlib

try:
    # Two to three times as fast as zlib, with the same interface.
    inflate: Any = importlib.import_module("isal.isal_zlib")
except ImportError:
    inflate = zlib

_ERRORS: tuple[type[Exception], ...] = (
    inflate.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
# Compressed bytes that are read at a time.
READ_BYTES = 256 << 10
# Bytes that are decompressed at a time. Zstandard can decompress 4 bytes to 128 KiB.
UNPACKED_BYTES = 1 << 20
# An xz file names the memory that its decompressor needs, up to 4 GiB; `xz -9` 65 MiB.
XZ_MEMORY_BYTES = 256 << 20
_ZIP = b"PK\x03\x04"
# Number of first bytes that identify a format.
MAGIC_BYTES = 6


class UnreadableError(ValueError):
    """A compressed file that cannot be read; the message gives its kind and advice."""


class Digest(Protocol):
    """A hash such as `files.digests.Sha256`."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes."""


def unpacked(stream: IO[bytes], digest: Digest | None) -> Iterator[bytes]:
    """Contents of a plain or compressed stream; closes it at its end.

    Args:
      stream: The stored bytes.
      digest: Updated with the stored bytes; may be None.

    Raises:
      EOFError: The stream is truncated, or has foreign bytes at its end.
      UnreadableError: A library is missing, a zip does not hold exactly one file, or
        an xz needs more than `XZ_MEMORY_BYTES`.
      zlib.error, lzma.LZMAError, OSError: It is damaged; see `errors`.
    """
    with stream:
        data = stream.read(READ_BYTES)
        while 0 < len(data) < MAGIC_BYTES and (more := stream.read(READ_BYTES)):
            data += more
        if digest is not None:
            digest.update(data)
        if data.startswith(_ZIP):
            yield from _of_zip(stream, data, digest)
            return
        make = _unpacker(data)
        rest = _stored(stream, digest)
        if make is None:
            while data:
                yield data
                data = next(rest, b"")
            return
        yield from _unpack(make, data, rest)


def _stored(stream: IO[bytes], digest: Digest | None) -> Iterator[bytes]:
    while data := stream.read(READ_BYTES):
        if digest is not None:
            digest.update(data)
        yield data


def _unpack(
    make: Callable[[], Any], data: bytes, rest: Iterator[bytes]
) -> Iterator[bytes]:
    unpacker = make()
    while data:
        if unpacker.eof:
            # Another member, as written by bgzip and `cat *.gz`; or padding.
            while len(data) < MAGIC_BYTES and (more := next(rest, b"")):
                data += more
            if not data.strip(b"\0"):
                data = next(rest, b"")
                continue
            if _unpacker(data) is None:
                raise EOFError
            unpacker = make()
        yield from _decompressed(unpacker, data)
        data = unpacker.unused_data if unpacker.eof else b""
        data = data or next(rest, b"")
    if not unpacker.eof:
        raise EOFError


def _decompressed(unpacker: Any, data: bytes) -> Iterator[bytes]:
    """All that these bytes decompress to, at most `UNPACKED_BYTES` at a time."""
    while True:
        try:
            text = unpacker.decompress(data, UNPACKED_BYTES)
        except lzma.LZMAError as error:
            if "Memory usage limit" not in str(error):
                raise
            raise UnreadableError(
                "this is an xz file that needs over "
                f"{XZ_MEMORY_BYTES >> 20} MiB to decompress. Compress it again, with "
                "`xz -9` at most."
            ) from error
        yield text
        # zlib returns what it did not use; the others keep it.
        data = getattr(unpacker, "unconsumed_tail", b"")
        if unpacker.eof or not (data or len(text) == UNPACKED_BYTES):
            return


def _of_zip(stream: IO[bytes], start: bytes, digest: Digest | None) -> Iterator[bytes]:
    """The one file in a zip."""
    with tempfile.TemporaryFile() as copy:
        # The directory of a zip is at its end, and a pipe cannot seek.
        copy.write(start)
        for data in _stored(stream, digest):
            copy.write(data)
        copy.flush()
        with zipfile.ZipFile(copy) as archive:
            with archive.open(_only_member(archive)) as member:
                while data := member.read(READ_BYTES):
                    yield data


def _only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = archive.namelist()
    if "[Content_Types].xml" in names:
        raise UnreadableError(
            "this is an Office document (.docx, .xlsx). Save the sequences as FASTA, "
            "or as CSV with the columns id and sequence."
        )
    members = [
        info
        for info in archive.infolist()
        if not (info.is_dir() or info.filename.startswith("__MACOSX/"))
    ]
    if members and all(info.filename.endswith(".npy") for info in members):
        raise UnreadableError("this is an .npz file of NumPy arrays.")
    if len(members) != 1:
        names = [info.filename for info in members]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UnreadableError(
            f"this zip holds {len(names)} files{f' ({shown})' if names else ''}. "
            "Unpack it and give the file of sequences."
        )
    if members[0].flag_bits & 1:
        raise UnreadableError("this zip is encrypted. Unpack it first.")
    # `zipfile` limits what it decompresses at a time for these two only.
    if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableError(
            f"this zip uses compression method {members[0].compress_type}; only "
            "deflate (8) is read. Unpack it first."
        )
    return members[0]


def errors() -> tuple[type[Exception], ...]:
    """Types of errors for damaged streams, besides OSError."""
    optional: list[type[Exception]] = []
    for name in ("compression.zstd", "backports.zstd"):
        if name in sys.modules:
            optional.append(sys.modules[name].ZstdError)
    if "lz4.frame" in sys.modules:
        optional.append(RuntimeError)
    return (*_ERRORS, *optional)


def is_compressed(start: bytes) -> bool:
    """Whether these first bytes are of a format that `unpacked` decompresses."""
    return start.startswith((_ZIP, *(magic for magic, _ in _FORMATS)))


def _unpacker(start: bytes) -> Callable[[], Any] | None:
    """Factory of the decompressor for these first bytes; None for a plain file."""
    for magic, make in _FORMATS:
        if start.startswith(magic):
            return make
    return None


def _gzip() -> Any:
    return inflate.decompressobj(16 + zlib.MAX_WBITS)


def _xz() -> Any:
    return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)


def _zstandard() -> Any:
    return _module("Zstandard", "compression.zstd", "backports.zstd").ZstdDecompressor()


def _lz4() -> Any:
    return _module("LZ4", "lz4.frame", "lz4").LZ4FrameDecompressor()


def _module(format_name: str, name: str, package: str) -> Any:
    for candidate in (name, package):
        try:
            return importlib.import_module(candidate)
        except ImportError:
            continue
    raise UnreadableError(
        f"this is compressed with {format_name}; reading it needs {package}: "
        f"pip install {package}."
    )


_FORMATS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", _xz),
    (b"\x28\xb5\x2f\xfd", _zstandard),
    (b"\x04\x22\x4d\x18", _lz4),
)
