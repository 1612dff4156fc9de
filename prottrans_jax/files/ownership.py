"""What this program may replace or delete: only what it made itself.

Names alone do not tell: a user's folder may be called like one of ours. Each place has
its marker (attributes of a file, a manifest, a journal), which its module looks for;
what lacks it is refused with `ForeignError`, and nothing is touched.
"""

from collections.abc import Callable, Iterable
import os
import pathlib

# Of the names that a message lists.
_SHOWN = 3


class ForeignError(ValueError):
    """A file or folder in the way was not made by this program, and stays."""


def refuse_foreign_entries(
    folder: pathlib.Path, is_ours: Callable[[str], bool]
) -> None:
    """Raises if a folder holds a name that this program does not give there.

    Args:
      folder: What is to be replaced or emptied; it need not exist.
      is_ours: Whether a name of an entry is one of ours.

    Raises:
      ForeignError: Lists the first such names.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ForeignError(
                f"{folder} is in the way: a folder goes there, and this is a file. "
                "Move it, or choose another output."
            )
        return
    foreign = sorted(path.name for path in folder.iterdir() if not is_ours(path.name))
    if foreign:
        raise ForeignError(
            f"{folder} holds what this program did not make ({shortened(foreign)}): "
            "nothing was touched. Move it, or choose another output."
        )


def refuse_foreign_file(path: pathlib.Path, start: bytes) -> None:
    """Raises if a file is there that does not begin as those of this program do.

    Args:
      path: What is to be replaced; it need not exist, and may be empty.
      start: First bytes of what this program writes there.

    Raises:
      ForeignError: Names it.
    """
    if not os.path.lexists(path):
        return
    content = b""
    if path.is_file():
        with open(path, "rb") as file:
            content = file.read(len(start))
    if not path.is_file() or content not in (start, b""):
        raise ForeignError(
            f"{path} was not made by this program, so it is not replaced. Move it, or "
            "choose another output."
        )


def refuse_same(
    inputs: Iterable[str | os.PathLike], outputs: Iterable[str | os.PathLike]
) -> None:
    """Raises if an output is an input, also through links or under another name.

    Raises:
      ForeignError: Names both.
    """
    inputs = list(inputs)
    for output in outputs:
        for path in inputs:
            if _is_same(path, output):
                raise ForeignError(
                    f"{output} is an input too ({path}): it would be lost. Choose "
                    "another output."
                )


def shortened(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_same(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # One is not there (yet).
        return os.path.realpath(first) == os.path.realpath(second)
