"""Errors that name the damaged part of an embedding file, and limits of its arrays."""

from collections.abc import Iterator, Sequence
import contextlib
import csv
import math
import pathlib
import zipfile
import zlib

import numpy as np

_CAUSES = (
    OSError,
    ValueError,
    KeyError,
    csv.Error,
    EOFError,
    RecursionError,  # From JSON in Zarr's metadata.
    NotImplementedError,  # From zipfile: unknown compression method.
    zipfile.BadZipFile,
    zlib.error,
)
# Vectors hardly compress: an array that is more than this many times as large as what
# is stored of it was made to exhaust the memory.
MAX_RATIO = 64
# Arrays up to this size are read whatever is stored.
_SMALL_BYTES = 64 << 20


@contextlib.contextmanager
def naming(path: pathlib.Path, part: str) -> Iterator[None]:
    """Turns errors of reading into a ValueError that names the part of the file.

    Args:
      path: The file.
      part: Name of the part, for example "the vectors of P12345".

    Raises:
      ValueError: The reader raised an error.
    """
    try:
        yield
    except _CAUSES as error:
        raise error_of(path, part, error) from error


def error_of(path: pathlib.Path, part: str, error: Exception) -> ValueError:
    """The ValueError that `naming` raises."""
    why = " ".join(str(error).split())
    return ValueError(
        f"{path} is damaged: {part} cannot be read, or fails its checksum: {why}"
    )


def check_array(
    path: pathlib.Path,
    part: str,
    shape: Sequence[int],
    dtype: np.dtype,
    stored_bytes: int,
) -> None:
    """Refuses an array before it is read.

    Args:
      path: The file.
      part: Name of the array, for example "the vectors of P12345".
      shape: The shape that the file claims.
      dtype: The type that the file claims.
      stored_bytes: Bytes that the file holds of the array, compressed or not.

    Raises:
      ValueError: It is a single number or holds no numbers, or it is over `MAX_RATIO`
        times as large as what is stored.
    """
    if not shape or dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {part} are not vectors: type {dtype}, shape {tuple(shape)}."
        )
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > max(_SMALL_BYTES, MAX_RATIO * stored_bytes):
        raise ValueError(
            f"{path}: {part} would take {claimed:,} bytes of memory, of which "
            f"{stored_bytes:,} are stored; up to {MAX_RATIO} times as many are read. "
            "The file is damaged, or was made to exhaust the memory."
        )
