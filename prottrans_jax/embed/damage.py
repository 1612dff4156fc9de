"""Errors that name the damaged part of an embedding file."""

from collections.abc import Iterator
import contextlib
import pathlib
import zipfile
import zlib

_CAUSES = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,  # From zipfile: unknown compression method.
    zipfile.BadZipFile,
    zlib.error,
)


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
