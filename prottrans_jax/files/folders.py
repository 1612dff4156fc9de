"""Content of a folder, on this machine or in a bucket."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile
from typing import IO

from prottrans_jax.files import buckets, paths

_PARALLEL = 16  # Files that are fetched at once.


def exists(path: paths.Place) -> bool:
    """Whether a path exists; a link on this machine does, also to nothing."""
    return path.exists() if buckets.is_bucket(path) else os.path.lexists(path)


def children(folder: paths.Place) -> list[paths.Place]:
    """Entries of a folder, sorted; none if it does not exist."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def files_below(folder: paths.Place) -> list[str]:
    """Files below a folder, as sorted paths relative to it.

    Raises:
      paths.PathError: an object of a bucket has a name that is no path below the
        folder, such as `a/../../b`.
      OSError: a request failed.
    """
    if buckets.is_bucket(folder):
        filesystem, name = buckets.filesystem(folder)
        return sorted(
            _relative(path, name)
            for path in filesystem.find(name)
            # `find` of an object gives the object. Consoles mark folders with objects
            # whose names end with a slash.
            if path != name and not path.endswith("/")
        )
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )


def _relative(path: str, folder: str) -> str:
    """Name of an object below a folder. The name may come from anyone."""
    relative = path.removeprefix(f"{folder}/")
    if relative == path or {"", ".", ".."} & set(relative.split("/")):
        raise paths.PathError(
            f"{folder}: the name of the object {path!r} is no path below this folder. "
            "Delete or rename it."
        )
    return relative


def upload(source: pathlib.Path, target: str | os.PathLike) -> None:
    """Copies a file, or the files below a folder, to a bucket, the largest first.

    Raises:
      OSError: a request failed, or a file cannot be read.
    """
    filesystem, name = buckets.filesystem(target)
    if not source.is_dir():
        filesystem.put_file(str(source), name)
        return
    files = sorted(
        files_below(source), key=lambda file: -(source / file).stat().st_size
    )
    for file in files:
        filesystem.put_file(str(source / file), f"{name}/{file}")


@contextlib.contextmanager
def local_copy(path: paths.Place) -> Iterator[pathlib.Path]:
    """Yields the path, or for a bucket a temporary copy of the file or folder.

    Errors of the block name the place in the bucket instead of the copy.

    Raises:
      OSError: a request failed, or the copy does not fit on this machine's disk.
    """
    if not buckets.is_bucket(path):
        yield pathlib.Path(path)
        return
    filesystem, name = buckets.filesystem(path)
    with tempfile.TemporaryDirectory(prefix="prottrans_jax.") as folder:
        copy = pathlib.Path(folder) / path.name
        if path.is_file():
            filesystem.get_file(name, str(copy))
        else:
            files = files_below(path)
            for file in files:
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
            # Many at once: a checkpoint of T5X has thousands of small files.
            filesystem.get(
                [f"{name}/{file}" for file in files],
                [str(copy / file) for file in files],
                batch_size=_PARALLEL,
            )
        try:
            yield copy
        except Exception as error:
            _rename(error, str(copy), str(path))
            raise


def _rename(error: Exception, old: str, new: str) -> None:
    """Replaces a path in an error and in those that it was raised from."""
    chain: BaseException | None = error
    while chain is not None:
        chain.args = tuple(
            arg.replace(old, new) if isinstance(arg, str) else arg for arg in chain.args
        )
        if isinstance(chain, OSError) and isinstance(chain.filename, str):
            chain.filename = chain.filename.replace(old, new)
        chain = chain.__cause__


def opened(path: str) -> IO[bytes] | None:
    """An object of a bucket as a stream, read ahead; None: a path of this machine.

    Raises:
      OSError: The object does not exist, or a request failed.
    """
    return buckets.path(path).open("rb") if buckets.is_bucket(path) else None


def remove(path: str | os.PathLike) -> None:
    """Deletes an object of a bucket, or all objects below a folder, if there are any.

    Raises:
      OSError: a request failed.
    """
    filesystem, name = buckets.filesystem(path)
    if filesystem.exists(name):
        # Another process may delete the same objects.
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(name, recursive=True)


def move(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies an object, or all objects below a folder, in a bucket; deletes the first.

    Raises:
      OSError: a request failed.
    """
    filesystem, name = buckets.filesystem(path)
    _, new_name = buckets.filesystem(target)
    objects = filesystem.find(name)
    for old in objects:
        filesystem.cp_file(old, new_name + old.removeprefix(name))
    filesystem.rm(objects)
