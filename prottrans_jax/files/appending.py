"""Files to which whole records are appended, also when the disk is full."""

import os
import pathlib
import shutil

from prottrans_jax.files import writing


class AppendedFile:
    """A file to which records are appended; each is written completely or not at all.

    Records that could not be written (disk full) stay in memory and are written before
    the next record. The file is created with the first record.

    Args:
      path: the file; records are appended to its content.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._fd: int | None = None
        self._size = self.path.stat().st_size if self.path.exists() else 0
        self._pending = b""
        # Last bytes of the file, which the pending ones will replace.
        self._replaced = b""

    def append(self, record: bytes, replacing: bytes = b"") -> None:
        """Appends a record, after pending ones.

        Args:
          record: its bytes.
          replacing: the last bytes appended so far, which the record replaces.

        Raises:
          OSError: the disk is full, for instance; the record stays in memory.
        """
        if self._pending:
            self._pending = self._pending[: len(self._pending) - len(replacing)]
        else:
            self._replaced = replacing
        self._pending += record
        self._write()

    def flush(self) -> None:
        """Writes pending records and synchronises the file to disk.

        Raises:
          OSError: the write failed.
        """
        if self._pending:
            self._write()
        if self._fd is not None:
            os.fsync(self._fd)

    def close(self) -> None:
        """Writes pending records and closes the file, also if the write fails.

        Raises:
          OSError: the write failed.
        """
        try:
            self.flush()
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _write(self) -> None:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        start = self._size - len(self._replaced)
        written = 0
        try:
            while written < len(self._pending):
                part = self._pending[written:]
                written += os.pwrite(self._fd, part, start + written)
        except OSError:
            # A partial record would make the following ones unreadable.
            os.ftruncate(self._fd, self._size)
            os.pwrite(self._fd, self._replaced, start)
            raise
        self._size = start + written
        self._replaced = b""
        self._pending = b""


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Appends a line of text to a file; completes an unterminated last line first.

    Raises:
      OSError: the disk is full, for instance; nothing was appended.
    """
    path = pathlib.Path(path)
    file = AppendedFile(path)
    is_unterminated = False
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as existing:
            existing.seek(-1, os.SEEK_END)
            is_unterminated = existing.read() != b"\n"
    try:
        file.append((("\n" if is_unterminated else "") + line + "\n").encode())
    finally:
        file.close()


def replace_content(path: pathlib.Path, content: bytes, new: bytes) -> None:
    """Atomically replaces the content of a file, `content`, by `new`.

    Raises:
      OSError: the disk is full, for instance.
    """
    if content == new:
        return
    if content.startswith(new):
        os.truncate(path, len(new))  # Works on a full disk.
        return
    writing.write_synced(path, new)


def set_aside(path: pathlib.Path, copy_name: str) -> pathlib.Path:
    """Copies a damaged file in its folder, with the first unused number in the name.

    Args:
      path: the file.
      copy_name: name of the copy, with `{}` for the number, which counts from 1.

    Returns:
      Path of the copy.
    """
    return pathlib.Path(shutil.copyfile(path, writing.unused(path, copy_name)))
