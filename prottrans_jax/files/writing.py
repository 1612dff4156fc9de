"""Files and folders created atomically.

They are written under a unique temporary name in the same folder, synchronised to disk
and renamed.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil

# Errors of writing to a full disk; EFBIG comes from `ulimit -f`, for example.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Bytes of a name that a temporary name keeps. File systems allow 255 in total.
_NAME_BYTES = 200
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial(\.\w+)?")


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path with the suffix of `path`, renamed to `path` at the end.

    A file at `path` is replaced; a folder is not. If the block raises, the temporary
    file or folder is deleted.
    """
    path = pathlib.Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        if temporary.is_file():
            sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a new folder with the name of `path`, moved to `path` at the end.

    Raises:
      FileExistsError: `path` exists and is not an empty folder; it is not changed.
      OSError: The disk is full; names `path`, for any error of the block.
    """
    path = pathlib.Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        inner = temporary / path.name
        inner.mkdir()
        yield inner
        refuse_existing(path)
        os.replace(inner, path.resolve() if path.is_symlink() else path)
        sync(path.parent)
    except Exception as error:
        code = no_room(error)
        if code is None:
            raise
        reason = f"{os.strerror(code)}. Nothing was left behind: make room, or choose "
        raise OSError(code, f"{reason}another folder", str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: pathlib.Path) -> None:
    """Raises `FileExistsError` if `path` exists and is not an empty folder."""
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(
                f"{path} exists and is not empty. Choose another folder."
            )
    elif os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is a file. Choose another name.")


def no_room(error: BaseException) -> int | None:
    """Errno of an error caused by a full disk; None for other errors.

    HDF5, tensorstore and TensorFlow raise their own errors with the system's text.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return error.errno
    text = str(error)
    return next((code for code in _NO_ROOM if os.strerror(code) in text), None)


def write_synced(path: pathlib.Path, data: bytes) -> None:
    """Writes a small file atomically and synchronises it to disk."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A unique hidden path in the folder of `path`, with its suffix."""
    stem = os.fsencode(path.stem)[:_NAME_BYTES].decode(errors="ignore")
    token = secrets.token_hex(8)
    return path.with_name(f".{stem}.{token}.partial{path.suffix}")


def is_temporary(name: str) -> bool:
    """Whether a name has the form of `temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove(path: str | os.PathLike) -> None:
    """Deletes a file or folder that this program created; of a link, only the link."""
    path = pathlib.Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(new: pathlib.Path, path: pathlib.Path, *, previous: pathlib.Path) -> None:
    """Moves a complete file or folder to `path`, durably.

    A folder cannot be replaced atomically: one at `path` is first moved to `previous`.
    """
    if path.is_dir():
        os.replace(path, previous)
    os.replace(new, path)
    sync(path.parent)


def set_aside(path: pathlib.Path, name: str) -> pathlib.Path:
    """Renames a file or folder as in `unused`; returns its new path."""
    return path.rename(unused(path, name))


def unused(path: pathlib.Path, name: str) -> pathlib.Path:
    """The first path beside `path` that does not exist.

    Args:
      path: A file or folder.
      name: Name with `{}` for a number, which counts from 1.
    """
    number = 1
    while (other := path.with_name(name.format(number))).exists():
        number += 1
    return other


def sync(path: str | os.PathLike) -> None:
    """Synchronises to disk the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
