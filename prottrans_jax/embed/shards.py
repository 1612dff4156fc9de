"""Resumable shards of computed vectors, with a journal, verified by SHA-256.

  OUTPUT.parts/run.json          identity of the run: model, layers, pooling ...
  OUTPUT.parts/journal.jsonl     one line per committed shard, with its hash
  OUTPUT.parts/00000.safetensors hashes of keys and sequences, and the vectors
  OUTPUT.parts/lock              held by the process that writes here
  OUTPUT.parts/merged.*          the output while it is written
  OUTPUT.parts/before.*          the previous Zarr folder while the output replaces it

A shard is written under a temporary name, synchronised to disk, renamed, and only then
entered in the journal. After a kill at any moment, every shard in the journal is whole.

For an output in a bucket the folder is there too, so that any machine can resume. Each
shard is written to a temporary folder of this machine, which is kept until the merge,
and uploaded before it is entered in the journal. A job that lost its lock commits
nothing.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import tempfile
from typing import Any

from absl import logging
import numpy as np

from prottrans_jax import differences
from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import zarr_folder
from prottrans_jax.files import (
    appending,
    buckets,
    digests,
    folders,
    json_text,
    locks,
    ownership,
    paths,
    writing,
)
from prottrans_jax.interop import safetensors

_JOURNAL = "journal.jsonl"
_RUN = "run.json"
_LOCK = "lock"
_MAX_OPEN = 64
# Recorded by earlier versions; the folder of a model may be renamed.
_NOT_COMPARED = frozenset({"model_name"})
# All file names that this version and earlier ones create in this folder.
_NAMES = re.compile(
    r"lock|(run\.json|journal\.jsonl|\d{5,})(\.partial)?(\.tmp)?|"
    r"\d{5,}\.safetensors|standard_input(\.\w+)*|(merged|before)\.\w+(\.\w+)?"
)


class OtherRunError(ValueError):
    """The output or its parts were made by another model or with other settings."""


@dataclasses.dataclass(frozen=True)
class Item:
    """Vectors of one protein to be written to a shard.

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
      identity: Identity of the run, JSON-able. Shards of another identity are refused.
      outputs: Path of each kind of output. If a kill came while a folder was being
        replaced, the previous one is moved back.
      fresh: Whether to delete existing shards.
      overwrite: Whether to delete existing shards of another identity.

    Attributes:
      folder: The folder, on this machine or in a bucket.
      work: Folder of this machine for shards and outputs that are being written.

    Raises:
      locks.LockedError: Another process writes there; names it.
      ownership.ForeignError: The folder holds files that this program did not make.
      OtherRunError: Shards have another identity; lists the differing fields.
    """

    def __init__(
        self,
        output: paths.Place,
        identity: Mapping[str, Any],
        *,
        outputs: Mapping[str, paths.Place] | None = None,
        fresh: bool = False,
        overwrite: bool = False,
    ):
        self.folder = output.with_name(output.name + ".parts")
        _refuse_foreign(self.folder)
        self._lock = locks.acquire(
            self.folder / _LOCK,
            output=output,
            advice="Wait for it, or choose another output.",
        )
        self._scratch: tempfile.TemporaryDirectory | None = None
        try:
            if buckets.is_bucket(self.folder):
                self._scratch = tempfile.TemporaryDirectory(prefix="prottrans_jax.")
                self.work = pathlib.Path(self._scratch.name)
            else:
                self.work = pathlib.Path(self.folder)
            for kind, path in (outputs or {}).items():
                self._restore(self.folder / f"before.{kind}", path)
            # Partial outputs left by a kill occupy space.
            for path in self.work.glob("merged.*"):
                writing.remove(path)
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
        """Whether there are no committed shards."""
        return not self._shards

    def commit(self, items: Sequence[Item]) -> int:
        """Writes a shard durably; returns its size in bytes.

        Raises:
          OSError: For example a full disk; earlier shards are kept.
        """
        number = max(self._shards, default=-1) + 1
        path = self._path(number)
        arrays = {"entries": np.frombuffer(b"".join(i.entry for i in items), np.uint8)}
        for kind in items[0].arrays:
            arrays[f"{kind}.sizes"] = np.array([i.arrays[kind].size for i in items])
            arrays[kind] = np.concatenate([i.arrays[kind].ravel() for i in items])
        try:
            safetensors.save(path, arrays)
            digest = digests.read(path)
            if buckets.is_bucket(self.folder):
                self._lock.check()
                folders.upload(path, self.folder / path.name)
            line = {
                "shard": number,
                "bytes": digest.num_bytes,
                "sha256": digest.hexdigest(),
                "proteins": len(items),
            }
            appending.append_line(self.folder / _JOURNAL, json.dumps(line))
        except OSError:
            path.unlink(missing_ok=True)  # Room for others on a full disk.
            raise
        self._shards[number] = line
        return digest.num_bytes

    def publish(self, new: pathlib.Path, path: paths.Place, kind: str) -> None:
        """Moves or uploads a complete output to its path, in place of an earlier one.

        Args:
          new: File or folder in `work`.
          path: The output. After a kill the next `Parts` completes or undoes it.
          kind: "residues" or "protein".

        Raises:
          leases.LostError: Another process writes to this output in a bucket.
          OSError: The output cannot be replaced, or a request failed.
        """
        before = self.folder / f"before.{kind}"
        if not buckets.is_bucket(path):
            writing.replace(new, pathlib.Path(path), previous=pathlib.Path(before))
            return
        self._lock.check()
        if not new.is_dir():  # The object is replaced at once when the upload ends.
            folders.upload(new, path)
            return
        if folders.exists(path / zarr_folder.METADATA):
            _move_zarr(path, before)
        writing.remove(path)
        for inner in new.iterdir():
            if inner.name != zarr_folder.METADATA:
                folders.upload(inner, path / inner.name)
        # A folder without it is not read.
        folders.upload(new / zarr_folder.METADATA, path / zarr_folder.METADATA)

    def _restore(self, before: paths.Place, path: paths.Place) -> None:
        """Moves the previous folder back, if a kill came while it was replaced."""
        if not buckets.is_bucket(path):
            if before.exists() and not path.exists():
                before.rename(path)
            return
        if path.suffix.lower() != ".zarr":
            return
        if folders.exists(path / zarr_folder.METADATA):
            writing.remove(before)
            return
        writing.remove(path)  # An upload that was not finished.
        if folders.exists(before):
            _move_zarr(before, path)

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
        """[entries, 2] (shard, row) of each entry, -1 for those not in a shard."""
        places = np.full((len(entries), 2), -1, np.int64)
        if not self._shards or not len(entries):
            return places
        shard_entries = {number: self._read_entries(number) for number in self._shards}
        kept = as_scalars(np.concatenate(list(shard_entries.values())))
        where = np.concatenate(
            [
                np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=1)
                for number, rows in shard_entries.items()
            ]
        )
        order = np.argsort(kept, kind="stable")
        scalars = as_scalars(entries)
        at = np.minimum(np.searchsorted(kept[order], scalars), len(order) - 1)
        same = kept[order[at]] == scalars
        places[same] = where[order[at[same]]]
        return places

    def remove(self) -> None:
        """Deletes the folder and releases its lock."""
        self._open.clear()
        self._clear()
        self._lock.release(remove=True)
        if self._scratch is not None:
            self._scratch.cleanup()
            return
        try:
            self.work.rmdir()
        except OSError:  # It holds files that this program did not make.
            logging.warning("%s is not empty and is kept.", self.folder)

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _path(self, number: int) -> pathlib.Path:
        return self.work / f"{number:05d}.safetensors"

    def _clear(self) -> None:
        """Deletes all files that this program made here, except the lock."""
        # Journal and run last, so that a folder left by a kill is recognisable.
        for path in sorted(
            self.folder.iterdir(), key=lambda path: path.name in (_JOURNAL, _RUN)
        ):
            if path.name != _LOCK and _is_ours(path.name):
                writing.remove(path)

    def _check_identity(self, identity, overwrite) -> None:
        path = self.folder / _RUN
        # Without shards nothing is lost, for example after a refused input.
        if path.exists() and self._shards:
            try:
                refuse_other_run(self.folder, _read_json(path), identity)
                return
            except OtherRunError:
                if not overwrite:
                    raise
            self._clear()
            self._shards = {}
        text = json.dumps(identity, indent=1, sort_keys=True)
        writing.write_synced(path, text.encode())

    def _read_journal(self) -> dict[int, dict[str, Any]]:
        """Reads the journal; logs and drops shards that are missing or damaged."""
        shards: dict[int, dict[str, Any]] = {}
        path = self.folder / _JOURNAL
        text = path.read_bytes() if path.exists() else b""
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        for line in whole:
            try:
                entry = json_text.parse(line)
                shards[entry["shard"]] = entry
            except (ValueError, KeyError, TypeError):
                logging.warning(
                    "%s: a damaged line; its shard is computed again.", path
                )
        for number, entry in list(shards.items()):
            stop_signals.check()
            if fault := self._fault(number, entry):
                logging.warning("%s: computed again.", fault)
                del shards[number]
        kept = [json.dumps(entry).encode() + b"\n" for entry in shards.values()]
        if b"".join(kept) != text:
            writing.write_synced(path, b"".join(kept))
        for file in self.folder.iterdir():
            stem = file.name.split(".")[0]
            is_shard = stem.isdigit() and _is_ours(file.name)
            if writing.is_temporary(file.name) or (
                is_shard and (file.suffix != ".safetensors" or int(stem) not in shards)
            ):
                writing.remove(file)  # Not committed, or damaged.
        return shards

    def _fault(self, number: int, entry: Mapping[str, Any]) -> str | None:
        path = self.folder / self._path(number).name
        try:
            if buckets.is_bucket(path):
                store, name = buckets.filesystem(path)
                store.get_file(name, str(self._path(number)))
                path = self._path(number)
            digest = digests.of_file(path)
        except FileNotFoundError as error:
            return f"{path}: {error.strerror}"
        except OSError as error:
            if buckets.is_bucket(path):  # An outage: nothing is known of the shard.
                raise
            return f"{path}: {error.strerror}"
        if digest != entry["sha256"]:
            return f"{path}: SHA-256 does not match the journal"
        return None

    def _read_entries(self, number: int) -> np.ndarray:
        # A view would keep the shard mapped.
        return np.array(safetensors.load(self._path(number))["entries"].reshape(-1, 32))


def as_scalars(entries: np.ndarray) -> np.ndarray:
    """[n, 32] bytes as n scalars that can be sorted and compared."""
    return np.ascontiguousarray(entries).view("S32").ravel()


def refuse_other_run(
    where: paths.Place,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    advice: str = "Choose another output, the same settings, or --overwrite.",
) -> None:
    """Raises `OtherRunError` if two identities differ."""
    if lines := differing_settings(before, now):
        listing = "\n".join(f"  {line}" for line in lines)
        raise OtherRunError(
            f"{where} was made with other settings (there -> now):\n{listing}\n{advice}"
        )


def differing_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each difference of two identities, each from JSON or not."""
    # An absent setting is None: outputs of earlier versions lack some.
    names = {*before, *now} - _NOT_COMPARED
    return differences.lines(*({n: x.get(n) for n in names} for x in (before, now)))


def _move_zarr(path: paths.Place, target: paths.Place) -> None:
    """Moves a Zarr folder within a bucket; its metadata decide which copy is valid."""
    store, name = buckets.filesystem(path)
    _, new_name = buckets.filesystem(target)
    names = folders.files_below(path)
    for file in sorted(names, key=lambda file: file == zarr_folder.METADATA):
        store.cp_file(f"{name}/{file}", f"{new_name}/{file}")
    writing.remove(path / zarr_folder.METADATA)
    writing.remove(path)


def _is_ours(name: str) -> bool:
    return _NAMES.fullmatch(name) is not None or writing.is_temporary(name)


def _refuse_foreign(folder: paths.Place) -> None:
    """Raises `ownership.ForeignError` if this program did not make the folder."""
    ownership.refuse_foreign_entries(folder, _is_ours)
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    # These files may exist before run.json.
    begun = {_LOCK, f"{_RUN}.partial", *filter(writing.is_temporary, names)}
    if names - begun and not names & {_RUN, _JOURNAL}:
        raise ownership.ForeignError(
            f"{folder} was not made by this program: it holds "
            f"{ownership.shortened(sorted(names - begun))} but no {_RUN}. Move it, or "
            "choose another output."
        )


def _read_json(path: paths.Place) -> Mapping[str, Any]:
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}
