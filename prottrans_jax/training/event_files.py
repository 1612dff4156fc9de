"""TensorBoard's event files: written, and truncated when a run resumes.

The format is TFRecord: length, its checksum, a serialised `Event`, its checksum. Files
of other writers in the folder (`clu.metric_writers`, `tf.summary`) are truncated too.
"""

from collections.abc import Iterator
import fnmatch
import functools
import os
import struct
import time

from absl import logging

from prottrans_jax.files import appending, folders, paths
from prottrans_jax.training import logged_steps

_PATTERN = "*tfevents*"
_HEADER = struct.Struct("<QI")
_CRC_BYTES = 4


class EventWriter:
    """Writes scalars to a new event file, created at the first write.

    Args:
      directory: TensorBoard's --logdir.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = paths.place(directory, "directory")
        name = f"events.out.tfevents.{time.time_ns():019d}.{os.getpid()}"
        self.path = self._directory / name
        self._file: appending.AppendedFile | appending.GrowingObject | None = None

    def write_scalars(self, step: int, scalars: logged_steps.Scalars) -> None:
        """Appends one event for each scalar.

        Raises:
          OSError: the disk is full, for instance. The events stay buffered; the next
            write tries again.
        """
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.scalar import summary_v2

        now = time.time()
        records = []
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = appending.open_log(self.path)
            # A running TensorBoard drops the events of this step and later.
            status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            records += [
                event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
                event_pb2.Event(wall_time=now, step=step, session_log=status),
            ]
        records += [
            event_pb2.Event(
                wall_time=now, step=step, summary=summary_v2.scalar_pb(name, value)
            )
            for name, value in scalars.items()
        ]
        self._file.append(b"".join(_framed(x.SerializeToString()) for x in records))

    def flush(self) -> None:
        """Writes buffered events to the disk.

        Raises:
          OSError: the write failed.
        """
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Writes buffered events and closes the file, also if the write fails.

        Raises:
          OSError: the write failed.
        """
        if self._file is not None:
            self._file.close()


def cut_back(run: paths.Place, resume_at: int, evaluated: bool) -> None:
    """Removes events that a run resumed from a checkpoint will write again.

    Covers event files in the run's folder and below `tensorboard` in it. A damaged file
    is first copied to a new name; its sound events stay.

    Args:
      run: the model directory.
      resume_at: step of the checkpoint.
      evaluated: see `logged_steps.is_kept`.

    Raises:
      OSError: a file cannot be read or written.
    """
    for path in find(run):
        if path.name.startswith("."):
            path.unlink()  # Left by a kill while a file was being cut back.
        else:
            _cut_back_file(path, resume_at, evaluated)


def find(run: paths.Place) -> list[paths.Place]:
    """Event files in a model directory and below `tensorboard` in it."""
    below = run / "tensorboard"
    places = [*folders.children(run), *(below / x for x in folders.files_below(below))]
    return sorted(
        place
        for place in places
        if fnmatch.fnmatchcase(place.name, _PATTERN) and place.is_file()
    )


def _cut_back_file(path: paths.Place, resume_at: int, evaluated: bool) -> None:
    content = path.read_bytes()
    kept, num_bytes_read, num_bad_records = [], 0, 0
    for record in _records(content):
        num_bytes_read += len(record)
        try:
            kept.append(_kept_part(record, resume_at, evaluated))
        except ValueError:
            num_bad_records += 1
    rest = content[num_bytes_read:]
    # A kill leaves an incomplete last record; anything else is damage.
    head = rest[: _HEADER.size]
    if num_bad_records or (len(head) == _HEADER.size and not _is_length(head)):
        # TensorBoard must not read the copy.
        name = path.name.replace("tfevents", "damaged-{}")
        copy = appending.set_aside(path, name)
        logging.warning(
            "%s is damaged; it was copied to %s. Its sound events are kept.",
            path,
            copy.name,
        )
    appending.replace_content(path, content, b"".join(kept))


def _kept_part(record: bytes, resume_at: int, evaluated: bool) -> bytes:
    """The record without scalars that will be written again; empty if none is left.

    Raises:
      ValueError: the record is not an event.
    """
    from google.protobuf import message
    from tensorboard.compat.proto import event_pb2

    try:
        event = event_pb2.Event.FromString(record[_HEADER.size : -_CRC_BYTES])
    except message.DecodeError as error:
        raise ValueError("not an event") from error
    if event.WhichOneof("what") == "file_version":
        return record
    if not event.HasField("summary"):
        return record if event.step <= resume_at else b""
    values = [
        value
        for value in event.summary.value
        if logged_steps.is_kept(event.step, value.tag, resume_at, evaluated)
    ]
    if len(values) == len(event.summary.value):
        return record
    del event.summary.value[:]
    event.summary.value.extend(values)
    return _framed(event.SerializeToString()) if values else b""


def _records(content: bytes) -> Iterator[bytes]:
    """Complete records from the start, up to the first length with a bad checksum."""
    position = 0
    while len(content) - position >= _HEADER.size:
        head = content[position : position + _HEADER.size]
        length = _whole_length(head)
        if not _is_length(head) or position + length > len(content):
            return
        yield content[position : position + length]
        position += length


def _whole_length(head: bytes) -> int:
    return _HEADER.size + _HEADER.unpack_from(head)[0] + _CRC_BYTES


@functools.lru_cache  # The checksum is computed in Python, and the same lengths recur.
def _is_length(head: bytes) -> bool:
    return _HEADER.unpack(head)[1] == _checksum(head[:8])


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", _checksum(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def _checksum(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

    return pywrap_tensorflow.masked_crc32c(data)
