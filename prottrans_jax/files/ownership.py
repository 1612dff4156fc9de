"""Prevents replacing or deleting files that this program did not create.

Names are not sufficient: a user's folder may have the name of one of ours. Each kind of
output has a marker (attributes of a file, a manifest, a journal), which its module
checks. An output without the marker is refused with `ForeignError` and not changed.
"""

from collections.abc import Callable, Iterable
import os

from prottrans_jax.files import buckets, folders, paths

# Number of names that a message lists.
_MAX_LISTED = 3


class ForeignError(ValueError):
    """A file or folder at an output's path was not created by this program."""


def refuse_foreign_entries(folder: paths.Place, is_ours: Callable[[str], bool]) -> None:
    """Raises if a folder has an entry with a name that this program does not use there.

    Args:
      folder: Folder to be replaced or emptied; it need not exist.
      is_ours: Whether this program uses the name of an entry.

    Raises:
      ForeignError: Lists the first such names.
    """
    if not folder.is_dir():
        if folders.exists(folder):
            raise ForeignError(
                f"{folder} is in the way: a folder goes there, and this is a file. "
                "Move it, or choose another output."
            )
        return
    foreign = sorted(path.name for path in folder.iterdir() if not is_ours(path.name))
    if foreign:
        raise ForeignError(
            f"{folder} holds entries that were not made by this program "
            f"({shortened(foreign)}): nothing was changed. Move them, or choose "
            "another output."
        )


def refuse_foreign_file(path: paths.Place, start: bytes) -> None:
    """Raises if a file exists that does not begin like this program's files.

    Args:
      path: File to be replaced; it need not exist, and may be empty.
      start: First bytes that this program writes.

    Raises:
      ForeignError: Names the file.
    """
    if not folders.exists(path):
        return
    content = b""
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(len(start))
    if not path.is_file() or content not in (start, b""):
        raise ForeignError(
            f"{path} was not made by this program, so it is not replaced. Move it, or "
            "choose another output."
        )


def refuse_same(
    inputs: Iterable[str | os.PathLike], outputs: Iterable[str | os.PathLike]
) -> None:
    """Raises if an output is the same file as an input, also through links.

    Raises:
      ForeignError: Names both.
    """
    inputs = list(inputs)
    for output in outputs:
        for path in inputs:
            if _is_same(path, output):
                raise ForeignError(
                    f"{output} is an input too ({path}) and would be overwritten. "
                    "Choose another output."
                )


def shortened(names: list[str]) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _is_same(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    if buckets.is_bucket(first) or buckets.is_bucket(second):
        return os.fspath(first) == os.fspath(second)
    try:
        return os.path.samefile(first, second)
    except OSError:  # One does not exist (yet).
        return os.path.realpath(first) == os.path.realpath(second)
