"""Files to which whole records are appended, also when the disk is full.

Nothing can be appended to an object of a bucket: there the whole content is kept in
memory and uploaded again, every minute and at `flush`. A kill loses what was appended
after that. An upload replaces only the version that this process knows, so that one
that was paused does not overwrite what another process has written since.
"""

import concurrent.futures
import os
import pathlib
import shutil
import time

from prottrans_jax.files import buckets, leases, locks, paths, writing

UPLOAD_PERIOD_S = 60.0


def open_log(
    path: paths.Place, lock: locks.Lock | None = None
) -> "AppendedFile | GrowingObject":
    """A file to which records are appended, on this machine or in a bucket.

    Args:
      path: the file.
      lock: see `GrowingObject`.
    """
    if buckets.is_bucket(path):
        return GrowingObject(path, lock=lock)
    return AppendedFile(path)


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


class GrowingObject:
    """An object of a bucket to which records are appended; see `AppendedFile`.

    Records are uploaded every `period_s` seconds, in the background, and at `flush`.

    Args:
      path: the object; records are appended to its content.
      period_s: seconds between uploads.
      lock: of the folder; checked before every upload. The methods raise
        `leases.LostError` if it is lost. None: no other process writes this object.

    Raises:
      OSError: the object cannot be read.
    """

    def __init__(
        self,
        path: paths.Place,
        period_s: float = UPLOAD_PERIOD_S,
        lock: locks.Lock | None = None,
    ):
        self.path = path
        self._period_s = period_s
        self._lock = lock
        self._store, self._name = buckets.filesystem(path)
        stored = self._store.read_version(self._name)
        self._content = bytearray(stored[0] if stored else b"")
        self._version: str | None = stored[1] if stored else None
        self._is_uploaded = True
        self._uploaded_at = time.monotonic()
        self._uploader = concurrent.futures.ThreadPoolExecutor(1, "upload_log")
        self._upload: concurrent.futures.Future[None] | None = None

    def append(self, record: bytes, replacing: bytes = b"") -> None:
        """Appends a record.

        Args:
          record: its bytes.
          replacing: the last bytes appended so far, which the record replaces.

        Raises:
          OSError: an earlier upload failed; the records stay in memory.
        """
        del self._content[len(self._content) - len(replacing) :]
        self._content += record
        self._is_uploaded = False
        if self._upload is not None and self._upload.done():
            self._end_upload()
        if (
            self._upload is None
            and time.monotonic() - self._uploaded_at >= self._period_s
        ):
            self._start_upload()

    def flush(self) -> None:
        """Uploads all records, and waits for the end of the upload.

        Raises:
          OSError: the upload failed.
        """
        if self._upload is not None:
            try:
                self._end_upload()
            except OSError:  # Tried once more here, with newer content.
                pass
        if not self._is_uploaded:
            self._start_upload()
            self._end_upload()

    def close(self) -> None:
        """Uploads all records.

        Raises:
          OSError: the upload failed.
        """
        try:
            self.flush()
        finally:
            self._uploader.shutdown()

    def _start_upload(self) -> None:
        content = bytes(self._content)
        self._is_uploaded = True
        self._uploaded_at = time.monotonic()
        self._upload = self._uploader.submit(self._write, content)

    def _write(self, content: bytes) -> None:
        self._check_lock(leases.RECENT_S)
        while True:
            version = self._store.write_version(self._name, content, self._version)
            if version is not None:
                self._version = version
                return
            # Either the answer to an earlier upload was lost, or another process has
            # written: one that had lost the lock, unless this process has lost it.
            self._check_lock(0.0)
            stored = self._store.read_version(self._name)
            self._version = stored[1] if stored else None

    def _check_lock(self, max_age_s: float) -> None:
        if self._lock is not None:
            self._lock.check(max_age_s)

    def _end_upload(self) -> None:
        upload, self._upload = self._upload, None
        assert upload is not None
        try:
            upload.result()
        except OSError:
            self._is_uploaded = False
            raise


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Appends a line of text to a file; completes an unterminated last line first.

    Raises:
      OSError: the disk is full, for instance; nothing was appended.
    """
    if buckets.is_bucket(path):
        _append_line_to_object(path, line)
        return
    path = pathlib.Path(path)
    file = AppendedFile(path)
    last = b""
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as existing:
            existing.seek(-1, os.SEEK_END)
            last = existing.read()
    try:
        file.append(_following(last, line))
    finally:
        file.close()


def _append_line_to_object(path: str | os.PathLike[str], line: str) -> None:
    filesystem, name = buckets.filesystem(path)
    while True:  # Another process may append a line at the same time.
        content, version = filesystem.read_version(name) or (b"", None)
        new = content + _following(content[-1:], line)
        if filesystem.write_version(name, new, version) is not None:
            return


def _following(last: bytes, line: str) -> bytes:
    """The bytes of a line after content that ends with `last`."""
    is_unterminated = last not in (b"", b"\n")
    return (("\n" if is_unterminated else "") + line + "\n").encode()


def replace_content(path: paths.Place, content: bytes, new: bytes) -> None:
    """Atomically replaces the content of a file, `content`, by `new`.

    Raises:
      OSError: the disk is full, for instance.
    """
    if content == new:
        return
    if content.startswith(new) and not buckets.is_bucket(path):
        os.truncate(path, len(new))  # Works on a full disk.
        return
    writing.write_synced(path, new)


def set_aside(path: paths.Place, copy_name: str) -> paths.Place:
    """Copies a damaged file in its folder, with the first unused number in the name.

    Args:
      path: the file.
      copy_name: name of the copy, with `{}` for the number, which counts from 1.

    Returns:
      Path of the copy.
    """
    copy = writing.unused(path, copy_name)
    if buckets.is_bucket(path):
        copy.write_bytes(path.read_bytes())
    else:
        shutil.copyfile(path, copy)
    return copy
