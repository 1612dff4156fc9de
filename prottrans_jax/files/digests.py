"""SHA-256 digests of files, bytes, JSON values and streams.

Every other module hashes with these functions. Imports nothing else of the package.
"""

from collections.abc import Iterable
import hashlib
import json
import os
import pathlib

# Large enough that reading costs little beside hashing.
_BLOCK_BYTES = 1 << 22


class Sha256:
    """SHA-256 of bytes that arrive in parts.

    Attributes:
      num_bytes: Bytes so far.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def update(self, data: bytes) -> None:
        """Adds bytes."""
        self._hash.update(data)
        self.num_bytes += len(data)

    def hexdigest(self) -> str:
        """Hex digest of the bytes so far."""
        return self._hash.hexdigest()


def read(path: str | os.PathLike) -> Sha256:
    """Digest and size of a file, which is read in blocks.

    Args:
      path: Text, or a path with the method `open`, which may be in a bucket.

    Raises:
      OSError: The file cannot be read.
    """
    digest = Sha256()
    opener = path if hasattr(path, "open") else pathlib.Path(path)
    with opener.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest


def of_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file. Raises as `read`."""
    return read(path).hexdigest()


def of_bytes(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def raw(data: bytes) -> bytes:
    """The 32 bytes of the SHA-256."""
    return hashlib.sha256(data).digest()


def raw_of_each(texts: Iterable[bytes]) -> bytes:
    """The 32 bytes of the SHA-256 of each text, concatenated."""
    sha256 = hashlib.sha256  # A global would be looked up for each text.
    return b"".join([sha256(text).digest() for text in texts])


def of_json(value: object, *, separators: tuple[str, str] | None = None) -> str:
    """Hex SHA-256 of a value as JSON with sorted keys.

    Args:
      value: Mappings, lists, strings, numbers, booleans and None.
      separators: As in `json.dumps`; the digest depends on them.
    """
    return of_bytes(json.dumps(value, sort_keys=True, separators=separators).encode())


def md5(data: bytes) -> str:
    """Hex MD5, for keys of other programs."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def blake2b_64(data: bytes) -> bytes:
    """The 8 bytes of BLAKE2b with this length."""
    return hashlib.blake2b(data, digest_size=8).digest()
