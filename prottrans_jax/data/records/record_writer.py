"""Writes prepared folders; `store` describes their layout."""

import collections
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any, Self
import weakref

from absl import logging
from array_record.python import array_record_module
import jaxtyping
import numpy as np

import prottrans_jax
from prottrans_jax.data.records import manifest as manifest_lib
from prottrans_jax.files import (
    buckets,
    digests,
    folders,
    json_text,
    locks,
    ownership,
    paths,
    writing,
)

_WRITER_OPTIONS = "group_size:64,zstd:1"
# Lower ends of the bins of the manifest's length histogram, in residues.
_BINS = (0, 32, 64, 128, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768)
CHUNK = 2048  # records
_PARALLEL_UPLOADS = 8
SKIPPED_FILE = "skipped.tsv"
_MADE_BY = "prottrans_jax "
# File names in a finished folder, and in one that is being written.
_FINISHED = re.compile(
    r"[^/]+-\d{5}-of-\d{5}\.array_record|[^/]+\.lengths\.npy|"
    + "|".join(map(re.escape, (manifest_lib.FILE, SKIPPED_FILE)))
)
_UNFINISHED = re.compile(
    r"[^/]+\.array_record|[^/]+\.lengths(\.npy)?|spill|"
    + "|".join(map(re.escape, (manifest_lib.FILE, SKIPPED_FILE)))
)


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """A shard on disk that is not part of a manifest yet."""

    path: pathlib.Path
    lengths_path: pathlib.Path
    num_records: int
    num_residues: int
    sha256: str
    letter_counts: tuple[int, ...]  # [256]


def write_shard(
    path: str | os.PathLike, chunks: Iterable[tuple[list[bytes], list[int]]]
) -> WrittenShard:
    """Writes one shard and, beside it, its length index. May run in any process.

    Args:
      path: the array_record file to write.
      chunks: stored bytes and numbers of residues of some records each.
    """
    path = pathlib.Path(path)
    lengths_path = path.with_suffix(".lengths")
    counts = np.zeros(256, np.int64)
    num_records = 0
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    with lengths_path.open("wb") as index:
        for payloads, lengths in chunks:
            # The fastest way to call a function for many items.
            collections.deque(map(writer.write, payloads), maxlen=0)
            pairs = zip(payloads, lengths, strict=True)
            counts += _letter_counts(b"".join([p[-n:] for p, n in pairs if n]))
            index.write(np.array(lengths, "<u4").tobytes())
            num_records += len(lengths)
    writer.close()
    writing.sync(path)
    return WrittenShard(
        path=path,
        lengths_path=lengths_path,
        num_records=num_records,
        num_residues=int(counts.sum()),
        sha256=digests.of_file(path),
        letter_counts=tuple(counts.tolist()),
    )


def chunked(
    records: Iterable[tuple[bytes, int]],
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Groups (payload, number of residues) pairs into chunks for `write_shard`."""
    iterator = iter(records)
    while some := list(itertools.islice(iterator, CHUNK)):
        yield [p for p, _ in some], [n for _, n in some]


def payload(name: str | bytes, residues: str | bytes) -> tuple[bytes, int]:
    """The stored bytes of a record, and its number of residues."""
    name = name.encode() if isinstance(name, str) else name
    residues = residues.encode("ascii") if isinstance(residues, str) else residues
    return name + b"\n" + residues, len(residues)


class Writer:
    """Writes a prepared folder; it gets its final name only when it is complete.

    Files are written to `folder`.partial, which is renamed at the end. A killed run
    leaves only this folder and `folder`.lock; the next run removes them. Files that
    this program did not make are never removed.

    For a folder in a bucket they are written to a temporary folder of this machine and
    uploaded at the end, the manifest last. A folder without it cannot be opened; beside
    `folder`.lock it was left by a killed upload, and the next run replaces it.

      with store.Writer("toy", name="toy") as writer:
          writer.add_shard("train", [("P1", "MKV"), ("P2", "ACDX")])
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        name: str,
        version: str = "1.0.0",
        overwrite: bool = False,
    ):
        """Claims `folder`.

        Raises:
          ValueError: it exists and `overwrite` is not set, or it is not writable.
          ownership.ForeignError: it, or a `.partial` or `.replaced` folder beside it,
            holds files that this program did not make.
          locks.LockedError: another process is writing it.
          OSError: a request to a bucket failed.
        """
        self.folder = _absolute(folder)
        self.name = name
        self.version = version
        self.written: dict[str, list[WrittenShard]] = {}
        # The folder while it is uploaded.
        self._begun: list[paths.Place] = []
        lock = self.folder.with_name(self.folder.name + ".lock")
        # An upload that was killed leaves its lock.
        if not (buckets.is_bucket(lock) and lock.exists() and _is_upload(self.folder)):
            _refuse_foreign(self.folder)
        if is_finished(self.folder) and not overwrite:
            raise ValueError(
                f"{self.folder} is finished already. Pass --overwrite to replace "
                "it, or give another folder."
            )
        if buckets.is_bucket(self.folder):
            self._claim(lock)
            self.work = pathlib.Path(tempfile.mkdtemp(prefix="prottrans_jax."))
            self._discard = weakref.finalize(
                self, _remove, self.work, self._lock, self._begun
            )
            return
        self.work = pathlib.Path(self.folder.with_name(self.folder.name + ".partial"))
        self._old = pathlib.Path(self.folder.with_name(self.folder.name + ".replaced"))
        _refuse_foreign(self._old)
        # A killed run leaves a lock beside its files.
        is_ours = _is_unfinished if lock.exists() else (lambda name: False)
        ownership.refuse_foreign_entries(self.work, is_ours)
        self._claim(lock)
        # Every orderly exit of the process removes unfinished files.
        self._discard = weakref.finalize(self, _remove, self.work, self._lock, ())
        writing.remove(self.work)
        self.work.mkdir()

    def _claim(self, lock: paths.Place) -> None:
        try:
            self._lock = locks.acquire(
                lock,
                output=self.folder,
                advice="Wait for it, or give another folder.",
            )
        except OSError as e:
            raise ValueError(
                f"cannot write to {self.folder.parent}: {e.strerror}."
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: Any) -> None:
        if kind is not None:
            self.abandon()
        elif self._discard.alive:
            self.finish()

    def add_shard(
        self, split: str, examples: Iterable[tuple[str | bytes, str | bytes]]
    ) -> None:
        """Writes (id, residues) pairs as the next shard of `split`."""
        path = self.work / "next.array_record"
        self.adopt(split, write_shard(path, chunked(payload(*e) for e in examples)))

    def adopt(self, split: str, shard: WrittenShard) -> None:
        """Adds a shard made by `write_shard` as the next one of `split`."""
        shards = self.written.setdefault(split, [])
        path = self.work / f"{split}.{len(shards)}.array_record"
        lengths_path = path.with_suffix(".lengths")
        shard.path.rename(path)
        shard.lengths_path.rename(lengths_path)
        shards.append(dataclasses.replace(shard, path=path, lengths_path=lengths_path))

    def finish(
        self,
        *,
        inputs: Iterable[dict[str, Any]] = (),
        options: dict[str, Any] | None = None,
        skipped: dict[str, int] | None = None,
        moved_copies: int = 0,
    ) -> manifest_lib.Manifest:
        """Names the shards, writes indices and manifest, and renames the folder."""
        manifest = manifest_lib.Manifest(
            name=self.name,
            version=self.version,
            format_version=manifest_lib.FORMAT_VERSION,
            created_by=f"{_MADE_BY}{prottrans_jax.__version__}",
            splits={s: self._finish_split(s) for s in self.written},
            inputs=tuple(inputs),
            options=options or {},
            skipped=skipped or {},
            moved_copies=moved_copies,
        ).sealed()
        path = self.work / manifest_lib.FILE
        path.write_text(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
        writing.sync(path)
        if buckets.is_bucket(self.folder):
            self._upload()
        else:
            writing.remove(self._old)
            writing.replace(self.work, pathlib.Path(self.folder), previous=self._old)
            with contextlib.suppress(OSError):
                writing.remove(self._old)
        self.abandon()  # Only the lock is left.
        return manifest

    def _upload(self) -> None:
        """Replaces the folder in the bucket; the manifest is deleted first, comes last.

        Raises:
          leases.LostError: another process writes to the folder.
          OSError: a request failed; the folder has no manifest.
        """
        self._lock.check()
        writing.remove(self.folder / manifest_lib.FILE)
        self._begun.append(self.folder)
        writing.remove(self.folder)
        names = [path.name for path in self.work.iterdir()]
        names.remove(manifest_lib.FILE)
        with concurrent.futures.ThreadPoolExecutor(_PARALLEL_UPLOADS) as threads:
            uploads = [
                threads.submit(folders.upload, self.work / name, self.folder / name)
                for name in sorted(names)
            ]
            try:
                for upload in uploads:
                    upload.result()
            finally:
                for upload in uploads:
                    upload.cancel()
        self._lock.check()
        folders.upload(self.work / manifest_lib.FILE, self.folder / manifest_lib.FILE)
        self._begun.clear()

    def abandon(self) -> None:
        """Removes all files written so far."""
        self._discard()

    def drop(self, split: str) -> None:
        """Removes the shards of a split, if there are any."""
        for shard in self.written.pop(split, ()):
            shard.path.unlink()
            shard.lengths_path.unlink()

    def _finish_split(self, split: str) -> manifest_lib.SplitInfo:
        written = self.written[split]
        shards = []
        counts = np.zeros(256, np.int64)
        histogram = np.zeros(len(_BINS), np.int64)
        max_length = 0
        lengths_path = self.work / f"{split}.lengths.npy"
        num_records = sum(w.num_records for w in written)
        with lengths_path.open("wb") as out:
            header = {
                "descr": "<u4",
                "fortran_order": False,
                "shape": (num_records,),
            }
            np.lib.format.write_array_header_1_0(out, header)
            for k, w in enumerate(written):
                lengths = np.fromfile(w.lengths_path, "<u4")
                out.write(lengths.tobytes())
                bins = np.searchsorted(_BINS, lengths, side="right") - 1
                histogram += np.bincount(bins, minlength=len(_BINS))
                max_length = max(max_length, int(lengths.max(initial=0)))
                counts += np.array(w.letter_counts)
                w.lengths_path.unlink()
                file = f"{split}-{k:05d}-of-{len(written):05d}.array_record"
                w.path.rename(self.work / file)
                num_bytes = (self.work / file).stat().st_size
                shards.append(
                    manifest_lib.Shard(
                        file, w.num_records, w.num_residues, num_bytes, w.sha256
                    )
                )
        writing.sync(lengths_path)
        tops = [*(f"{b - 1}" for b in _BINS[1:]), ""]
        return manifest_lib.SplitInfo(
            num_records=num_records,
            num_residues=int(counts.sum()),
            max_length=max_length,
            length_histogram={
                f"{low}-{top}": int(n)
                for low, top, n in zip(_BINS, tops, histogram, strict=True)
                if n
            },
            alphabet={chr(b): int(n) for b, n in enumerate(counts) if n},
            lengths_file=lengths_path.name,
            lengths_sha256=digests.of_file(lengths_path),
            shards=tuple(shards),
        )


def _absolute(folder: str | os.PathLike) -> paths.Place:
    """The place of an output.

    Raises:
      PathError: it is no path, or a whole bucket.
    """
    place = paths.place(folder, "output")
    if not buckets.is_bucket(place):
        return pathlib.Path(os.path.abspath(place))
    if "/" not in os.fspath(place).partition("://")[2]:
        raise paths.PathError(f"output={place}: name a folder in the bucket.")
    return place


def _is_upload(folder: paths.Place) -> bool:
    """Whether a folder in a bucket has only files of an upload, and no manifest."""
    names = folders.files_below(folder)
    return manifest_lib.FILE not in names and all(map(_FINISHED.fullmatch, names))


def is_finished(folder: paths.Place) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / manifest_lib.FILE).exists()


def _refuse_foreign(folder: paths.Place) -> None:
    """Refuses a folder with files that are not those of a prepared folder.

    Raises:
      ownership.ForeignError: Names these files.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        ownership.refuse_foreign_entries(folder, _is_unfinished)
        return
    if not _has_manifest(folder):
        raise ownership.ForeignError(
            f"{folder} exists, is not empty and holds no {manifest_lib.FILE} of a "
            "prepared folder: not touching it. Give another folder."
        )
    ownership.refuse_foreign_entries(
        folder, lambda name: _FINISHED.fullmatch(name) is not None
    )


def _has_manifest(folder: paths.Place) -> bool:
    """Whether a folder has a manifest of this program; it may be damaged."""
    try:
        content = json_text.parse((folder / manifest_lib.FILE).read_bytes())
    except OSError:
        return False
    except ValueError:  # Damaged: recognised by the names of the other files.
        return any(folder.glob("*.lengths.npy"))
    made_by = content.get("created_by") if isinstance(content, dict) else None
    return str(made_by).startswith(_MADE_BY)


def _is_unfinished(name: str) -> bool:
    return _UNFINISHED.fullmatch(name) is not None


def _remove(
    work: pathlib.Path, lock: locks.Lock, uploaded: Sequence[paths.Place]
) -> None:
    shutil.rmtree(work, ignore_errors=True)
    try:
        for folder in uploaded:
            lock.check()  # Another process may have taken it, and the folder.
            writing.remove(folder)
    except OSError as error:  # With its lock the folder is recognised.
        logging.warning("%s is unfinished: %s", folder, paths.explain(error))
        return
    with contextlib.suppress(OSError):
        lock.release(remove=True)


def _letter_counts(joined: bytes) -> jaxtyping.Int64[np.ndarray, "256"]:
    # Two letters at a time is twice as fast; bincount takes most of the time.
    even = len(joined) & ~1
    pairs = np.bincount(np.frombuffer(joined[:even], "<u2"), minlength=1 << 16)
    counts = pairs.reshape(256, 256).sum(0) + pairs.reshape(256, 256).sum(1)
    if even != len(joined):
        counts[joined[-1]] += 1
    return counts
