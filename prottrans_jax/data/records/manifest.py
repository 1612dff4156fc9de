"""The manifest of a prepared folder: its content, hashes, inputs and options."""

import dataclasses
import functools
import os
import pathlib
from typing import Any, Self

from prottrans_jax.files import digests, json_text, paths

FILE = "manifest.json"
FORMAT_VERSION = 1
# A larger length index is hashed once per process. Smaller ones take below 0.2 s.
_LARGE_BYTES = 64 << 20
REMEDY = "Copy the folder again, or prepare it again"


class DamageError(ValueError):
    """A file of a prepared folder is missing or contradicts the manifest."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split."""

    file: str
    num_records: int
    num_residues: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """The entry of a split in the manifest; lengths in residues."""

    num_records: int
    num_residues: int
    max_length: int
    length_histogram: dict[str, int]
    alphabet: dict[str, int]
    lengths_file: str
    lengths_sha256: str
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content, inputs and options of a prepared folder."""

    name: str
    version: str
    format_version: int
    created_by: str
    splits: dict[str, SplitInfo]
    inputs: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Reason -> number of records that were left out.
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    # Copies of a sequence that were moved into the split of its first record, from the
    # split given by the hash of their own id.
    moved_copies: int = 0

    # SHA-256 of all other fields; "" in folders of versions that did not write it.
    sha256: str = ""

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Self:
        """Reads `folder`/manifest.json and checks it against its own digest and sums.

        Raises:
          DamageError: it is damaged or inconsistent.
          ValueError: it is missing, unreadable, or of another format.
        """
        path = paths.place(folder, "folder") / FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(
                f"{folder} is not a finished folder of records: it has no {FILE}. "
                "Make one with: python -m prottrans_jax.prepare --input=FASTA "
                f"--output={folder}"
            ) from None
        except OSError as e:
            raise ValueError(f"{path} cannot be read: {e.strerror}.") from e
        try:
            raw = json_text.parse(data)
            splits = {
                name: SplitInfo(
                    **{**split, "shards": tuple(Shard(**s) for s in split["shards"])}
                )
                for name, split in raw["splits"].items()
            }
            manifest = cls(**{**raw, "splits": splits, "inputs": tuple(raw["inputs"])})
            problem = _contradiction(raw) or manifest._wrong_sum()
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DamageError(f"{path} is damaged: {_message_of(e)}. {REMEDY}.") from e
        if problem:
            raise DamageError(f"{path} is damaged: {problem}. {REMEDY}.")
        if manifest.format_version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {manifest.format_version}; this version reads "
                f"{FORMAT_VERSION}. Prepare the data again."
            )
        return manifest

    def sealed(self) -> Self:
        """The same manifest with its digest."""
        return dataclasses.replace(self, sha256=_digest(dataclasses.asdict(self)))

    def _wrong_sum(self) -> str:
        """Describes parts that do not add up; "" if all do."""
        # The only check of folders without a digest.
        for name, split in self.splits.items():
            for unit, parts, total in (
                ("records", [s.num_records for s in split.shards], split.num_records),
                (
                    "residues",
                    [s.num_residues for s in split.shards],
                    split.num_residues,
                ),
                ("residues", split.alphabet.values(), split.num_residues),
                ("records", split.length_histogram.values(), split.num_records),
            ):
                if sum(parts) != total:
                    return (
                        f"its parts of {name} add up to {sum(parts)} {unit}, not to "
                        f"{total}"
                    )
        return ""


def _digest(fields: dict[str, Any]) -> str:
    """Hex SHA-256 of all fields but `sha256`, as sorted JSON without spaces.

    Computed from the file, not from a `Manifest`: later versions have more fields.
    """
    others = {name: value for name, value in fields.items() if name != "sha256"}
    return digests.of_json(others, separators=(",", ":"))


def _contradiction(fields: dict[str, Any]) -> str:
    actual, stated = _digest(fields), fields.get("sha256", "")
    if not stated or stated == actual:
        return ""
    return (
        f"the SHA-256 of its fields is {actual}, not {stated} (if you changed it on "
        'purpose, remove the line "sha256")'
    )


def _message_of(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no field {error}"
    return str(error)


def check_lengths(folder: pathlib.Path, split: SplitInfo) -> pathlib.Path:
    """Compares the length index of a split with the manifest.

    Every row of a run depends on the lengths, so a wrong length changes batches long
    before its record is read. This reads the whole file, 4 bytes per record: 8.4 GB for
    the 2.1 billion of BFD. A process reads a large file again only if its size,
    modification time or inode changed.

    Returns:
      Path of the file.

    Raises:
      DamageError: it is missing or has another SHA-256.
    """
    path = folder / split.lengths_file
    try:
        stat = path.stat()
        version = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        large = stat.st_size >= _LARGE_BYTES
        actual = _digest_of_version(path, *version) if large else digests.of_file(path)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing. {REMEDY}.") from None
    except OSError as e:
        raise DamageError(f"{path} cannot be read: {e.strerror}. {REMEDY}.") from e
    if actual != split.lengths_sha256:
        raise DamageError(
            f"{path} is damaged: the SHA-256 of its {stat.st_size:,} bytes is "
            f"{actual}, {FILE} says {split.lengths_sha256} (lengths of "
            f"{split.num_records:,} records). {REMEDY}."
        )
    return path


@functools.lru_cache(maxsize=256)
def _digest_of_version(path: pathlib.Path, *_: int) -> str:
    """SHA-256 of a file; the other arguments are part of the cache key."""
    return digests.of_file(path)


def verify(folder: str | os.PathLike) -> list[str]:
    """Compares every file of a prepared folder with the manifest.

    Returns:
      One line for each damaged or missing file; empty if there are none.
    """
    folder = paths.place(folder, "folder")
    try:
        splits = Manifest.read(folder).splits
    except DamageError as e:
        return [str(e)]
    problems = []
    for split in splits.values():
        listed = [(s.file, s.sha256) for s in split.shards]
        for file, sha256 in [*listed, (split.lengths_file, split.lengths_sha256)]:
            path = folder / file
            if not path.exists():
                problems.append(f"{path}: missing")
                continue
            actual = digests.of_file(path)
            if actual != sha256:
                problems.append(
                    f"{path}: its SHA-256 is not that of the manifest: {actual}, not "
                    f"{sha256}"
                )
    return problems
