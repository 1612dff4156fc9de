"""Errors of a damaged embedding file, which name the part that cannot be read."""

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
    NotImplementedError,  # zipfile, of a compression that there is none of.
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def naming(path: pathlib.Path, part: str) -> Iterator[None]:
    """Makes errors of reading a part of a file say which part it is.

    Args:
      path: The file.
      part: What is read, as "the vectors of P12345".

    Raises:
      ValueError: In place of whatever the reader raised.
    """
    try:
        yield
    except _CAUSES as error:
        raise error_of(path, part, error) from error


def error_of(path: pathlib.Path, part: str, error: Exception) -> ValueError:
    """The error that names a part; see `naming`."""
    why = " ".join(str(error).split())
    return ValueError(
        f"{path} is damaged: {part} cannot be read, or not as its checksum says: {why}"
    )
