"""Work that is kept: committed shards and a journal, believed by their SHA-256.

  OUTPUT.parts/run.json          what is computed: model, layers, pooling ...
  OUTPUT.parts/journal.jsonl     one line per committed shard, with its hash
  OUTPUT.parts/00000.safetensors hashes of keys and sequences, and the vectors
  OUTPUT.parts/lock              held by the one process that writes here

A shard is written under another name, synchronised to disk, renamed, and only then
entered in the journal. Killed at any moment, what the journal names is whole.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import time
from typing import Any

from absl import logging
import numpy as np

from prottrans_jax import stop_signals
from prottrans_jax.interop import safetensors

_JOURNAL = "journal.jsonl"
_RUN = "run.json"
_MAX_OPEN = 64
# Recorded by earlier versions: the same weights may lie in a renamed folder.
_NOT_COMPARED = frozenset({"model_name"})


class LockedError(RuntimeError):
    """Another process writes to the same output."""


class OtherRunError(ValueError):
    """What is on disk was made by another model, or with other settings."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One protein on its way into a shard.

    Attributes:
      entry: 32 bytes: hashes of key and sequence.
      arrays: Vectors by kind ("residues", "protein"), in their stored type.
    """

    entry: bytes
    arrays: Mapping[str, np.ndarray]


class Parts:
    """The folder of committed shards beside an output.

    Args:
      output: The output file.
      identity: What is computed; JSON-able. Shards of another identity are refused.
      fresh: Whether to throw away what is there.
      overwrite: Whether to throw it away if it is of another identity.

    Raises:
      LockedError: Another process writes there; says which.
      OtherRunError: Lists what differs.
    """

    def __init__(
        self,
        output: pathlib.Path,
        identity: Mapping[str, Any],
        *,
        fresh: bool = False,
        overwrite: bool = False,
    ):
        self.folder = output.with_name(output.name + ".parts")
        self._lock: int | None = _take_lock(self.folder / "lock", output)
        try:
            if fresh:
                self._clear()
            self._shards = self._read_journal()
            self._check_identity(identity, overwrite)
        except BaseException:
            self.close()
            raise
        self._open: dict[int, Any] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no shard is kept."""
        return not self._shards

    def commit(self, items: Sequence[Item]) -> int:
        """Writes a shard; returns its bytes. When it returns, the shard is kept.

        Raises:
          OSError: The disk is full, for one; what was committed before stays.
        """
        number = max(self._shards, default=-1) + 1
        path = self._path(number)
        arrays = {"entries": np.frombuffer(b"".join(i.entry for i in items), np.uint8)}
        for kind in items[0].arrays:
            arrays[f"{kind}.sizes"] = np.array([i.arrays[kind].size for i in items])
            arrays[kind] = np.concatenate([i.arrays[kind].ravel() for i in items])
        temporary = path.with_suffix(".partial")
        try:
            safetensors.save(temporary, arrays)
            with open(temporary, "rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            os.replace(temporary, path)
            sync_folder(self.folder)
            line = {
                "shard": number,
                "bytes": size,
                "sha256": digest,
                "proteins": len(items),
            }
            with open(self.folder / _JOURNAL, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._shards[number] = line
        return size

    def arrays(self, place: Sequence[int], kind: str) -> np.ndarray:
        """Flat vectors of the protein at (shard, row)."""
        number, row = int(place[0]), int(place[1])
        if number not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            arrays = safetensors.load(self._path(number))
            stops = {
                name.removesuffix(".sizes"): np.cumsum(sizes)
                for name, sizes in arrays.items()
                if name.endswith(".sizes")
            }
            self._open[number] = arrays, stops
        arrays, stops = self._open[number]
        start = int(stops[kind][row - 1]) if row else 0
        return arrays[kind][start : int(stops[kind][row])]

    def find(self, entries: np.ndarray) -> np.ndarray:
        """[entries, 2] (shard, row) of each, -1 for those that are not kept."""
        places = np.full((len(entries), 2), -1, np.int64)
        if not self._shards or not len(entries):
            return places
        found = {number: self._read_entries(number) for number in self._shards}
        kept = as_scalars(np.concatenate(list(found.values())))
        where = np.concatenate(
            [
                np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=1)
                for number, rows in found.items()
            ]
        )
        order = np.argsort(kept, kind="stable")
        wanted = as_scalars(entries)
        at = np.minimum(np.searchsorted(kept[order], wanted), len(order) - 1)
        same = kept[order[at]] == wanted
        places[same] = where[order[at[same]]]
        return places

    def remove(self) -> None:
        """Deletes the folder, when all is merged; then lets go of it."""
        self._open.clear()
        # The journal last of the files: without it nothing is believed.
        for path in sorted(self.folder.iterdir()):
            if path.name not in ("lock", _JOURNAL):
                path.unlink() if path.is_file() else shutil.rmtree(path)
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        (self.folder / "lock").unlink(missing_ok=True)
        self.close()
        try:
            self.folder.rmdir()
        except OSError:  # Somebody put something in: not ours to delete.
            logging.warning("%s is not empty and stays.", self.folder)

    def close(self) -> None:
        """Lets another process write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:05d}.safetensors"

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink() if path.is_file() else shutil.rmtree(path)

    def _check_identity(self, identity, overwrite) -> None:
        path = self.folder / _RUN
        # Without a shard nothing is lost: a run that only saw its input be refused.
        if path.exists() and self._shards:
            before = json.loads(path.read_text(encoding="utf-8"))
            try:
                refuse_other_run(self.folder, before, identity)
                return
            except OtherRunError:
                if not overwrite:
                    raise
            self._clear()
            self._shards = {}
        write_synced(path, json.dumps(identity, indent=1, sort_keys=True).encode())

    def _read_journal(self) -> dict[int, dict[str, Any]]:
        """Shards that are there and whole; others are named and dropped."""
        shards: dict[int, dict[str, Any]] = {}
        path = self.folder / _JOURNAL
        text = path.read_bytes() if path.exists() else b""
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        for line in whole:
            entry = json.loads(line)
            shards[entry["shard"]] = entry
        for number, entry in list(shards.items()):
            stop_signals.check()
            if fault := self._fault(number, entry):
                logging.warning("%s: computed again.", fault)
                del shards[number]
        kept = [json.dumps(entry).encode() + b"\n" for entry in shards.values()]
        if b"".join(kept) != text:
            write_synced(path, b"".join(kept))
        for file in self.folder.iterdir():
            if file.name.split(".")[0].isdigit() and (
                file.suffix != ".safetensors"
                or int(file.name.split(".")[0]) not in shards
            ):
                file.unlink()  # Not committed, or damaged.
        return shards

    def _fault(self, number: int, entry: Mapping[str, Any]) -> str | None:
        path = self._path(number)
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{path}: {error.strerror}"
        if digest != entry["sha256"]:
            return f"{path}: SHA-256 does not match the journal"
        return None

    def _read_entries(self, number: int) -> np.ndarray:
        # A copy: views would keep every shard mapped.
        return np.array(safetensors.load(self._path(number))["entries"].reshape(-1, 32))


def as_scalars(entries: np.ndarray) -> np.ndarray:
    """[n, 32] bytes as n scalars that sort and compare."""
    return np.ascontiguousarray(entries).view("S32").ravel()


def refuse_other_run(
    where: pathlib.Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    advice: str = "Choose another output, the same settings, or --overwrite.",
) -> None:
    """Raises `OtherRunError` if two identities differ."""
    lines = [
        f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in differing_fields(before, now)
    ]
    if lines:
        raise OtherRunError(
            f"{where} was made in another way:\n" + "\n".join(lines) + f"\n{advice}"
        )


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two identities, read from JSON or not, differ."""
    before, now = (json.loads(json.dumps(dict(x))) for x in (before, now))
    return [
        name
        for name in sorted({*before, *now} - _NOT_COMPARED)
        if before.get(name) != now.get(name)
    ]


def write_synced(path: pathlib.Path, data: bytes) -> None:
    """Writes a small file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Makes renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_lock(path: pathlib.Path, output: pathlib.Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # The kernel lets go of it when the holder dies, however that is.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            holder = json.loads(os.read(descriptor, 4096))
            who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError, OSError):
            who = "another process"
        os.close(descriptor)
        raise LockedError(
            f"{output} is being written by {who}. Wait for it, or choose another "
            "output."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise OSError(
            error.errno,
            f"the file system of {path.parent} does not lock files "
            f"({os.strerror(error.errno or 0)}), so two writers could not be told "
            "apart. Write to another one, and copy the output there.",
        ) from None
    if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
        # The holder finished and deleted the file between our two calls.
        os.close(descriptor)
        return _take_lock(path, output)
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return descriptor
