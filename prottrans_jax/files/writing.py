"""Files and folders that appear under their name whole, or not at all.

They are written under a temporary name beside their place, which no other file has,
synchronised to disk and renamed.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil

# What writing to a full disk gives; EFBIG by `ulimit -f`, for one.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a name's bytes, leaving room in the 255 of a file system for what is added.
_NAME_BYTES = 200
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial(\.\w+)?")


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path with the ending of `path`, which it becomes at the end.

    What was at `path` is replaced, unless it is a folder. If the block raises, whatever
    is at the temporary path is deleted.
    """
    path = pathlib.Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        remove(temporary)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a folder of the same name, to fill, which becomes `path` at the end.

    Raises:
      FileExistsError: `path` is there and is no empty folder; it is left as it is.
      OSError: The disk is full; names `path`, whatever the block raised.
    """
    path = pathlib.Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    around = temporary_name(path)
    around.mkdir()
    try:
        inner = around / path.name
        inner.mkdir()
        yield inner
        refuse_existing(path)
        os.replace(inner, path.resolve() if path.is_symlink() else path)
        sync_folder(path.parent)
    except Exception as error:
        code = no_room(error)
        if code is None:
            raise
        why = f"{os.strerror(code)}. Nothing was left behind: make room, or choose "
        raise OSError(code, f"{why}another folder", str(path)) from error
    finally:
        shutil.rmtree(around, ignore_errors=True)


def refuse_existing(path: pathlib.Path) -> None:
    """Raises `FileExistsError` unless nothing, or an empty folder, is at `path`."""
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(
                f"{path} exists and is not empty. Choose another folder."
            )
    elif os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is a file. Choose another name.")


def no_room(error: BaseException) -> int | None:
    """Errno of an error that tells of a full disk, or None if it is another one.

    HDF5, tensorstore and TensorFlow have errors of their own, with the system's text.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return error.errno
    text = str(error)
    return next((code for code in _NO_ROOM if os.strerror(code) in text), None)


def write_synced(path: pathlib.Path, data: bytes) -> None:
    """Writes a small file so that it is there whole or not at all."""
    with new_file(path) as temporary:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path`, with its ending, that no file has."""
    stem = os.fsencode(path.stem)[:_NAME_BYTES].decode(errors="ignore")
    token = secrets.token_hex(8)
    return path.with_name(f".{stem}.{token}.partial{path.suffix}")


def is_temporary(name: str) -> bool:
    """Whether a name is one that `temporary_name` gives."""
    return _TEMPORARY.fullmatch(name) is not None


def remove(path: pathlib.Path) -> None:
    """Deletes a file or folder that this program made; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
