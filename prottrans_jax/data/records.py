"""Prepared protein records: checksummed shards with random access, under a manifest.

A prepared folder holds, for each split, array_record shards, one length index and their
SHA-256 in the manifest, which is written last:

  manifest.json
  train-00000-of-00002.array_record    records 0 .. n0 - 1 of the split
  train-00001-of-00002.array_record    records n0 .. n0 + n1 - 1
  train.lengths.npy                    uint32 residues of every record, in that order

One record is ``id (UTF-8, no white space) + b"\\n" + residues (upper-case ASCII)``:
letters, not ids of a vocabulary, so that one folder serves every family.

Shards are compressed with zstd in groups of 64 records: 0.56 bytes a residue (amino
acids have 4.2 bits each), and a random read unpacks some 20 kB.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import os
import pathlib
import resource
import threading
from typing import Any

from array_record.python import array_record_module
import jaxtyping
import numpy as np

from prottrans_jax.data import manifest as manifest_lib
from prottrans_jax.data import record_writer


class DamageError(ValueError):
    """A file of a prepared folder is missing or not what the manifest says."""


# The whole of the format under one name.
Manifest = manifest_lib.Manifest
Writer = record_writer.Writer
verify = manifest_lib.verify


def open(folder: str | os.PathLike) -> "RecordFolder":
    """Opens a prepared folder: reads its manifest, nothing else yet.

    Raises:
      ValueError: the folder is not finished, damaged, or of another format.
    """
    return RecordFolder(pathlib.Path(folder), Manifest.read(folder))


def sample_dir() -> pathlib.Path:
    """The prepared sample of Swiss-Prot proteins that the package ships."""
    return pathlib.Path(__file__).parent / "sample"


@dataclasses.dataclass(frozen=True)
class RecordFolder:
    """A finished folder of records."""

    path: pathlib.Path
    manifest: Manifest

    def split(self, name: str) -> "RecordSplit":
        """The split `name`, e.g. "train".

        Raises:
          ValueError: there is no such split.
          DamageError: a file of it is missing or has another size than the manifest
            says.
        """
        if name not in self.manifest.splits:
            raise ValueError(
                f"{self.path} has no split {name!r}, it has "
                f"{', '.join(self.manifest.splits)}. `prepare` makes one with "
                "--validation_fraction or --validation_input; the gin macros "
                "EVAL_SPLIT and EVAL_MIXTURE_OR_TASK_NAME choose what is evaluated."
            )
        return RecordSplit(self.path, name, self.manifest.splits[name])


class RecordSplit:
    """Random access to the records of one split. Threads may share it."""

    def __init__(self, folder: pathlib.Path, name: str, info: manifest_lib.SplitInfo):
        self.folder = folder
        self.name = name
        self.info = info
        for shard in info.shards:
            _check_size(folder / shard.file, shard.num_bytes)
        lengths_file = folder / info.lengths_file
        try:
            self.lengths: jaxtyping.UInt32[np.ndarray, " records"] = np.load(
                lengths_file, mmap_mode="r" if info.num_records else None
            )
        except (OSError, ValueError) as e:
            raise DamageError(f"{lengths_file} is missing or damaged: {e}") from e
        if self.lengths.shape != (info.num_records,):
            raise DamageError(
                f"{lengths_file} has {self.lengths.size} entries for "
                f"{info.num_records} records. Prepare the data again."
            )
        self._starts = np.cumsum([0] + [s.num_records for s in info.shards])
        self._readers: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        allow_open_files(len(info.shards))

    def __getstate__(self) -> dict[str, Any]:
        # Readers stay behind: each process opens its own.
        return {"folder": self.folder, "name": self.name, "info": self.info}

    def __setstate__(self, state: dict[str, Any]) -> None:
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
        """Letter -> how often it occurs in the split."""
        return self.info.alphabet

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the hashes of the shards: equal where the records are."""
        text = "\n".join([self.name, *(s.sha256 for s in self.info.shards)])
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, indices: np.typing.ArrayLike) -> list[bytes]:
        """Residues (upper-case letters) of the records `indices`, in that order.

        Raises:
          ValueError: an index is outside the split.
          DamageError: a record is corrupt: which file and record.
        """
        return [residues for _, residues in self._read(indices)]

    def ids(self, indices: np.typing.ArrayLike) -> list[str]:
        """Ids of the records `indices`, in that order. Raises as `read` does."""
        return [name.decode() for name, _ in self._read(indices)]

    def _read(self, indices: np.typing.ArrayLike) -> list[tuple[bytes, bytes]]:
        index = np.asarray(indices, np.int64).reshape(-1)
        outside = (index < 0) | (index >= self.num_records)
        if outside.any():
            raise ValueError(
                f"{self.folder}: split {self.name} has {self.num_records} records, "
                f"there is no record {index[outside][0]}."
            )
        # [records] -> one call a shard, each with its records in rising order.
        shards = np.searchsorted(self._starts, index, side="right") - 1
        out: list[tuple[bytes, bytes]] = [(b"", b"")] * len(index)
        order = np.lexsort((index, shards))
        borders = np.flatnonzero(np.diff(shards[order])) + 1
        for part in np.split(order, borders) if len(index) else ():
            shard = int(shards[part[0]])
            local = index[part] - self._starts[shard]
            for at, record, where in zip(
                part.tolist(), self._raw(shard, local.tolist()), local, strict=True
            ):
                name, _, residues = record.partition(b"\n")
                if len(residues) != self.lengths[index[at]]:
                    raise self._corrupt(
                        shard,
                        int(where),
                        f"it has {len(residues)} residues, the index says "
                        f"{self.lengths[index[at]]}",
                    )
                out[at] = (name, residues)
        return out

    def _raw(self, shard: int, local: list[int]) -> list[bytes]:
        reader = self._reader(shard)
        try:
            return reader.read(local)
        except RuntimeError:
            pass
        # Which one? Read alone, each says for itself.
        for where in local:
            try:
                reader.read([where])
            except RuntimeError as e:
                raise self._corrupt(shard, where, str(e)) from e
        return reader.read(local)

    def _corrupt(self, shard: int, where: int, why: str) -> DamageError:
        return DamageError(
            f"{self.folder / self.info.shards[shard].file}: record {where} (record "
            f"{self._starts[shard] + where} of {self.name}) is corrupt: {why}. Copy or "
            "prepare the folder again; `python -m prottrans_jax.prepare --verify="
            f"{self.folder}` lists all damaged files."
        )

    def _reader(self, shard: int) -> Any:
        # By process as well: a reader's threads do not survive a fork.
        key = (os.getpid(), shard)
        with self._lock:
            if key not in self._readers:
                info = self.info.shards[shard]
                path = self.folder / info.file
                try:
                    reader = array_record_module.ArrayRecordReader(str(path))
                    found = reader.num_records()
                except RuntimeError as e:
                    raise DamageError(f"{path} cannot be read: {e}") from e
                if found != info.num_records:
                    raise DamageError(
                        f"{path} has {found} readable records, the manifest says "
                        f"{info.num_records}: it is damaged."
                    )
                self._readers[key] = reader
            return self._readers[key]


def iterate(split: RecordSplit, batch: int = 4096) -> Iterator[tuple[str, bytes]]:
    """All (id, residues) of `split` in order."""
    for start in range(0, split.num_records, batch):
        part = np.arange(start, min(start + batch, split.num_records))
        for name, residues in split._read(part):
            yield name.decode(), residues


def _check_size(path: pathlib.Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DamageError(
            f"{path} is missing. Copy or prepare the data again."
        ) from None
    if found != num_bytes:
        raise DamageError(
            f"{path} has {found} bytes, the manifest says {num_bytes}. Copy or prepare "
            "the data again."
        )


def allow_open_files(count: int) -> None:
    """Random access keeps every shard open; the usual limit is 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
