"""Prepared protein records: checksummed shards with random access, and a manifest.

A prepared folder holds array_record shards and one length index for each split. The
manifest, which is written last, holds their SHA-256:

  manifest.json
  train-00000-of-00002.array_record    records 0 .. n0 - 1 of the split
  train-00001-of-00002.array_record    records n0 .. n0 + n1 - 1
  train.lengths.npy                    uint32 residues of every record, in that order

One record is ``id (UTF-8, no white space) + b"\\n" + residues (upper-case ASCII)``:
letters, not ids of a vocabulary, so that one folder serves all model families.

A folder may be in a bucket: the length index and the shards are then copied to this
machine as they are needed, see `shard_cache`.

Shards are compressed with zstd in groups of 64 records: 0.56 bytes per residue (the
entropy of amino acids is 4.2 bits each). A random read decompresses about 20 kB.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import Any
import weakref

from absl import logging
import jaxtyping
import numpy as np

from prottrans_jax.data.records import manifest as manifest_lib
from prottrans_jax.data.records import record_writer, shard_cache, shard_readers
from prottrans_jax.files import buckets, digests, paths

# The public names of the format.
DamageError = manifest_lib.DamageError
Manifest = manifest_lib.Manifest
Writer = record_writer.Writer
verify = manifest_lib.verify

# Tries to open a copy of a shard that other threads and processes delete.
_MAX_OPENINGS = 10


def open(
    folder: str | os.PathLike,
    *,
    open_reader: Callable[[str], shard_readers.Reader] = (
        shard_readers.open_array_record
    ),
) -> "RecordFolder":
    """Opens a prepared folder; reads only its manifest.

    Args:
      folder: made by `prepare`.
      open_reader: makes a reader from the path of a shard.

    Raises:
      DamageError: the manifest is damaged.
      ValueError: the folder is not finished, or of another format.
    """
    path = paths.place(folder, "folder")
    return RecordFolder(path, Manifest.read(path), open_reader)


@dataclasses.dataclass(frozen=True)
class RecordFolder:
    """A finished folder of records."""

    path: paths.Place
    manifest: Manifest
    open_reader: Callable[[str], shard_readers.Reader] = shard_readers.open_array_record

    def split(self, name: str) -> "RecordSplit":
        """The split `name`, e.g. "train".

        Raises:
          ValueError: there is no such split.
          DamageError: a shard is missing or has a wrong size, or the length index has a
            wrong SHA-256.
        """
        if name not in self.manifest.splits:
            raise ValueError(
                f"{self.path} has no split {name!r}, it has "
                f"{', '.join(self.manifest.splits)}. `prepare` makes one with "
                "--validation_fraction or --validation_input; the gin macros "
                "EVAL_SPLIT and EVAL_MIXTURE_OR_TASK_NAME choose what is evaluated."
            )
        info = self.manifest.splits[name]
        if not buckets.is_bucket(self.path):  # Else it is checked when it is fetched.
            manifest_lib.check_lengths(pathlib.Path(self.path), info)
        return RecordSplit(self.path, name, info, self.open_reader)


class RecordSplit:
    """Random access to the records of one split. Threads may share it.

    Shards are opened on first use. The shards of one call are read concurrently.
    """

    def __init__(
        self,
        folder: paths.Place,
        name: str,
        info: manifest_lib.SplitInfo,
        open_reader: Callable[[str], shard_readers.Reader],
    ):
        self.folder = folder
        self.name = name
        self.info = info
        self._open_reader = open_reader
        _check_sizes(folder, info)
        self.lengths: jaxtyping.UInt32[np.ndarray, " records"] = _lengths(folder, info)
        self._starts = np.cumsum([0] + [s.num_records for s in info.shards])
        shard_readers.allow_open_files(len(info.shards))
        # A reference to `self` here would keep it alive.
        keys = self._keys = [(object(), i) for i in range(len(info.shards))]
        weakref.finalize(self, shard_readers.OPEN.close, keys)
        self._cache: shard_cache.ShardCache | None = None
        if buckets.is_bucket(folder):
            self._cache = shard_cache.ShardCache(
                [
                    shard_cache.File(folder / s.file, s.num_bytes, s.sha256)
                    for s in info.shards
                ],
                lambda number: shard_readers.OPEN.close([keys[number]]),
            )

    def __getstate__(self) -> dict[str, Any]:
        # Without readers: each process opens its own.
        return {
            "folder": self.folder,
            "name": self.name,
            "info": self.info,
            "open_reader": self._open_reader,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The lengths are not hashed again; the process that pickled did it.
        self.__init__(**state)  # type: ignore[misc]

    @property
    def num_records(self) -> int:
        """Records in the split."""
        return self.info.num_records

    @property
    def num_residues(self) -> int:
        """Residues in the split."""
        return self.info.num_residues

    @property
    def alphabet(self) -> dict[str, int]:
        """Letter -> number of occurrences in the split."""
        return self.info.alphabet

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the hashes of the shards; identifies the records."""
        text = "\n".join([self.name, *(s.sha256 for s in self.info.shards)])
        return digests.of_bytes(text.encode())

    def read(self, indices: np.typing.ArrayLike) -> list[bytes]:
        """Residues (upper-case letters) of the records `indices`, in that order.

        Raises:
          ValueError: an index is outside the split.
          DamageError: a record is corrupt; names the file and the record.
        """
        return self.begin(indices).residues()

    def ids(self, indices: np.typing.ArrayLike) -> list[str]:
        """Ids of the records `indices`, in that order. Raises as `read` does."""
        return [name.decode() for name, _ in self.begin(indices).records()]

    def begin(self, indices: np.typing.ArrayLike) -> "Reading":
        """Starts to read the records `indices`.

        Raises:
          ValueError: an index is outside the split.
        """
        index = np.asarray(indices, np.int64).reshape(-1)
        outside = (index < 0) | (index >= self.num_records)
        if outside.any():
            raise ValueError(
                f"{self.folder}: split {self.name} has {self.num_records} records, "
                f"there is no record {index[outside][0]}."
            )
        # [records] -> one read per shard, each with its records in ascending order.
        shards = np.searchsorted(self._starts, index, side="right") - 1
        order = np.lexsort((index, shards))
        borders = np.flatnonzero(np.diff(shards[order])) + 1
        places = np.split(order, borders) if len(index) else []
        parts = [
            shard_readers.submit(self._read_shard, int(shards[place[0]]), index[place])
            for place in places
        ]
        return Reading(places, parts)

    def _read_shard(
        self, shard: int, index: jaxtyping.Int64[np.ndarray, " some"]
    ) -> list[tuple[bytes, bytes]]:
        """(id, residues) of records of one shard."""
        try:
            return self._read_once(shard, index)
        except DamageError as error:
            if self._cache is None or not self._cache.discard(shard):
                raise
            logging.warning("%s Its copy is fetched again.", error)
            return self._read_once(shard, index)

    def _read_once(
        self, shard: int, index: jaxtyping.Int64[np.ndarray, " some"]
    ) -> list[tuple[bytes, bytes]]:
        local = index - self._starts[shard]
        out = []
        for record, where, length in zip(
            self._raw(shard, local.tolist()),
            local.tolist(),
            self.lengths[index].tolist(),
            strict=True,
        ):
            name, _, residues = record.partition(b"\n")
            if len(residues) != length:
                raise self._corrupt(
                    shard,
                    where,
                    f"it has {len(residues)} residues, the index says {length}",
                )
            out.append((name, residues))
        return out

    def _raw(self, shard: int, local: list[int]) -> list[bytes]:
        reader = self._reader(shard)
        try:
            return reader.read(local)
        except RuntimeError:
            pass
        # Read one by one to find the corrupt record.
        for where in local:
            try:
                reader.read([where])
            except RuntimeError as e:
                raise self._corrupt(shard, where, str(e)) from e
        return reader.read(local)

    def _corrupt(self, shard: int, where: int, reason: str) -> DamageError:
        return DamageError(
            f"{self.folder / self.info.shards[shard].file}: record {where} (record "
            f"{self._starts[shard] + where} of {self.name}) is corrupt: {reason}. "
            "Copy or prepare the folder again; `python -m prottrans_jax.prepare "
            f"--verify={self.folder}` lists all damaged files."
        )

    def _reader(self, shard: int) -> shard_readers.Reader:
        if self._cache is None:
            path = pathlib.Path(self.folder / self.info.shards[shard].file)
            return self._open(shard, path)
        for _ in range(_MAX_OPENINGS):
            path = self._cache.path(shard)
            try:
                return self._open(shard, path)
            except DamageError:
                if path.exists():
                    raise
        raise ValueError(
            f"{self.folder / self.info.shards[shard].file}: its copy was deleted "
            f"{_MAX_OPENINGS} times before it was read: increase {shard_cache.GIB}."
        )

    def _open(self, shard: int, path: pathlib.Path) -> shard_readers.Reader:
        info = self.info.shards[shard]
        shown = self.folder / info.file

        def checked() -> shard_readers.Reader:
            try:
                reader = self._open_reader(str(path))
                num_records = reader.num_records()
            except RuntimeError as e:
                if shard_readers.is_too_many_files(e):
                    raise
                raise DamageError(f"{shown} cannot be read: {e}") from e
            if num_records != info.num_records:
                raise DamageError(
                    f"{shown} has {num_records} readable records, the manifest says "
                    f"{info.num_records}: it is damaged. {manifest_lib.REMEDY}."
                )
            return reader

        return shard_readers.OPEN.get(self._keys[shard], checked)


@dataclasses.dataclass(frozen=True)
class Reading:
    """Records that are being read, shard by shard.

    Attributes:
      places: for each shard, the indices of its records in the requested order.
      parts: (id, residues) of the records of each shard.
    """

    places: list[np.ndarray]
    parts: list[concurrent.futures.Future]

    def records(self) -> list[tuple[bytes, bytes]]:
        """(id, residues) of all records; waits for them.

        Raises:
          DamageError: a record is corrupt; names the first one in shard order.
        """
        out: list[tuple[bytes, bytes]] = [(b"", b"")] * sum(map(len, self.places))
        for place, part in zip(self.places, self.parts, strict=True):
            for at, record in zip(place.tolist(), part.result(), strict=True):
                out[at] = record
        return out

    def residues(self) -> list[bytes]:
        """As `records`, residues only."""
        return [residues for _, residues in self.records()]


def _lengths(
    folder: paths.Place, info: manifest_lib.SplitInfo
) -> jaxtyping.UInt32[np.ndarray, " records"]:
    path = folder / info.lengths_file
    if buckets.is_bucket(path):
        path = _fetched_lengths(path, info)
    try:
        # An empty file cannot be mapped.
        lengths = np.load(path, mmap_mode="r" if info.num_records else None)
    except (OSError, ValueError, EOFError) as e:
        raise DamageError(f"{path} is damaged: {e}. {manifest_lib.REMEDY}.") from e
    if lengths.shape != (info.num_records,) or lengths.dtype != np.uint32:
        raise DamageError(
            f"{path} is damaged: it holds {lengths.dtype} of shape {lengths.shape}, "
            f"not uint32 lengths of {info.num_records} records. {manifest_lib.REMEDY}."
        )
    return lengths


def _fetched_lengths(path: paths.Place, info: manifest_lib.SplitInfo) -> pathlib.Path:
    """A verified copy of the length index, also if an earlier copy is damaged."""
    file = shard_cache.File(path, 4 * info.num_records, info.lengths_sha256)
    try:
        copy = shard_cache.fetch(file)
        if digests.of_file(copy) != info.lengths_sha256:
            copy.unlink(missing_ok=True)
            copy = shard_cache.fetch(file)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing. {manifest_lib.REMEDY}.") from None
    return copy


def _check_sizes(folder: paths.Place, info: manifest_lib.SplitInfo) -> None:
    if buckets.is_bucket(folder):
        # One request for all shards.
        filesystem, name = buckets.filesystem(folder)
        listing = filesystem.find(name, detail=True)
        sizes = {path.rpartition("/")[2]: x["size"] for path, x in listing.items()}
    else:
        sizes = {}
        for shard in info.shards:
            with contextlib.suppress(FileNotFoundError):
                sizes[shard.file] = os.stat(folder / shard.file).st_size
    for shard in info.shards:
        path = folder / shard.file
        if shard.file not in sizes:
            raise DamageError(f"{path} is missing. {manifest_lib.REMEDY}.")
        if sizes[shard.file] != shard.num_bytes:
            raise DamageError(
                f"{path} has {sizes[shard.file]} bytes, the manifest says "
                f"{shard.num_bytes}. {manifest_lib.REMEDY}."
            )
