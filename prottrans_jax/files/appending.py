"""Files that grow by whole records, on disks that may be full."""

import os
import pathlib
import shutil

from prottrans_jax.files import writing


class AppendedFile:
    """A file that records are appended to; each is written whole or not at all.

    What could not be written (disk full) is kept in memory and written before the next
    record. The file is made with the first record.

    Args:
      path: the file; goes on behind what it holds.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._fd: int | None = None
        self._size = self.path.stat().st_size if self.path.exists() else 0
        self._pending = b""
        # Last bytes of the file, in whose place the pending ones go.
        self._replaced = b""

    @property
    def pending_bytes(self) -> int:
        """Bytes that are not in the file yet."""
        return len(self._pending)

    def append(self, record: bytes, replacing: bytes = b"") -> None:
        """Writes a record behind the others, and those kept before it.

        Args:
          record: its bytes.
          replacing: the last bytes appended so far, in whose place the record goes.

        Raises:
          OSError: the disk is full, for instance; the record is kept.
        """
        if self._pending:
            self._pending = self._pending[: len(self._pending) - len(replacing)]
        else:
            self._replaced = replacing
        self._pending += record
        self._write()

    def flush(self) -> None:
        """Writes what was kept, and pushes all to the disk.

        Raises:
          OSError: that failed.
        """
        if self._pending:
            self._write()
        if self._fd is not None:
            os.fsync(self._fd)

    def close(self) -> None:
        """Writes what was kept; the file is closed even if that fails.

        Raises:
          OSError: that failed.
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
            # Half a record would hide all that comes behind it.
            os.ftruncate(self._fd, self._size)
            os.pwrite(self._fd, self._replaced, start)
            raise
        self._size = start + written
        self._replaced = b""
        self._pending = b""


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Appends a line of text to a file; a torn last line gets its end first.

    Raises:
      OSError: the disk is full, for instance; nothing was appended.
    """
    path = pathlib.Path(path)
    file = AppendedFile(path)
    torn = False
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as existing:
            existing.seek(-1, os.SEEK_END)
            torn = existing.read() != b"\n"
    try:
        file.append((("\n" if torn else "") + line + "\n").encode())
    finally:
        file.close()


def replace_content(path: pathlib.Path, content: bytes, new: bytes) -> None:
    """Makes `new` the content of a file that holds `content`; whole or not at all.

    Raises:
      OSError: the disk is full, for instance.
    """
    if content == new:
        return
    if content.startswith(new):
        os.truncate(path, len(new))  # Needs no room on the disk.
        return
    writing.write_synced(path, new)


def set_aside(path: pathlib.Path, copy_name: str) -> pathlib.Path:
    """Keeps a copy of a damaged file beside it, under the first free number.

    Args:
      path: the file.
      copy_name: name of the copy, with `{}` for the number, which counts from 1.

    Returns:
      Path of the copy.
    """
    number = 1
    while (copy := path.with_name(copy_name.format(number))).exists():
        number += 1
    shutil.copyfile(path, copy)
    return copy
