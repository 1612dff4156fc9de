"""Files and folders created atomically, on this machine or in a bucket.

On this machine they are written under a unique temporary name in the same folder,
synchronised to disk and renamed. For a bucket they are written to a temporary folder of
this machine and uploaded: an object appears at once with its whole content, a folder
object by object.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import tempfile

from prottrans_jax.files import buckets, folders, paths

# Errors of writing to a full disk; EFBIG comes from `ulimit -f`, for example.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Bytes of a name that a temporary name keeps. File systems allow 255 in total.
_NAME_BYTES = 200
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial(\.\w+)?")


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path with the suffix of `path`, renamed to `path` at the end.

    A file at `path` is replaced; a folder is not. If the block raises, the temporary
    file or folder is deleted. For a bucket the temporary path is on this machine.
    """
    if buckets.is_bucket(path):
        with tempfile.TemporaryDirectory(prefix="prottrans_jax.") as folder:
            temporary = pathlib.Path(folder) / os.path.basename(os.fspath(path))
            yield temporary
            folders.upload(temporary, path)
        return
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

    For a bucket it is uploaded, the largest files first: a small file with the
    description of the others comes last. A failed upload is removed.

    Raises:
      FileExistsError: `path` exists and is not an empty folder; it is not changed.
      OSError: The disk is full; names `path`, for any error of the block.
    """
    if buckets.is_bucket(path):
        bucket_folder = buckets.path(os.fspath(path))
        refuse_existing(bucket_folder)
        with tempfile.TemporaryDirectory(prefix="prottrans_jax.") as parent:
            inner = pathlib.Path(parent) / bucket_folder.name
            inner.mkdir()
            yield inner
            try:
                folders.upload(inner, bucket_folder)
            except BaseException:
                remove(bucket_folder)
                raise
        return
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


def refuse_existing(path: paths.Place) -> None:
    """Raises `FileExistsError` if `path` exists and is not an empty folder."""
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(
                f"{path} exists and is not empty. Choose another folder."
            )
    elif folders.exists(path):
        raise FileExistsError(f"{path} exists and is a file. Choose another name.")


def no_room(error: BaseException) -> int | None:
    """Errno of an error caused by a full disk; None for other errors.

    HDF5, tensorstore and TensorFlow raise their own errors with the system's text.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return error.errno
    text = str(error)
    return next((code for code in _NO_ROOM if os.strerror(code) in text), None)


def write_synced(path: paths.Place, data: bytes) -> None:
    """Writes a small file atomically and synchronises it to disk."""
    if buckets.is_bucket(path):
        path.write_bytes(data)  # One upload.
        return
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
    if buckets.is_bucket(path):
        folders.remove(path)
        return
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


def set_aside(path: paths.Place, name: str) -> paths.Place:
    """Renames a file or folder as in `unused`; returns its new path.

    In a bucket every object is copied and then deleted.
    """
    target = unused(path, name)
    if buckets.is_bucket(path):
        folders.move(path, target)
        return target
    return path.rename(target)


def unused(path: paths.Place, name: str) -> paths.Place:
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
