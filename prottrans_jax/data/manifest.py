"""The manifest of a prepared folder: what it holds, its hashes, where it came from."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Self

FILE = "manifest.json"
FORMAT_VERSION = 1


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
    """What the manifest says of a split; lengths in residues."""

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
    """What a prepared folder holds, where it came from and how it was made."""

    name: str
    version: str
    format_version: int
    created_by: str
    splits: dict[str, SplitInfo]
    inputs: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Reason -> number of records that were left out.
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Self:
        """Reads and checks `folder`/manifest.json.

        Raises:
          ValueError: there is none, it cannot be read, or is of another format.
        """
        path = pathlib.Path(folder) / FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            splits = {
                name: SplitInfo(
                    **{**split, "shards": tuple(Shard(**s) for s in split["shards"])}
                )
                for name, split in raw["splits"].items()
            }
            manifest = cls(**{**raw, "splits": splits, "inputs": tuple(raw["inputs"])})
        except FileNotFoundError:
            raise ValueError(
                f"{folder} is no finished folder of records: it has no {FILE}. "
                "Make one with: python -m prottrans_jax.prepare --input=FASTA "
                f"--output={folder}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{path} is damaged: {e}. Prepare the data again.") from e
        if manifest.format_version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {manifest.format_version}, this version reads "
                f"{FORMAT_VERSION}. Prepare the data again."
            )
        for name, split in splits.items():
            if sum(s.num_records for s in split.shards) != split.num_records:
                raise ValueError(
                    f"{path} is damaged: the shards of {name} do not add up to "
                    f"{split.num_records} records. Prepare the data again."
                )
        return manifest


def verify(folder: str | os.PathLike) -> list[str]:
    """Compares every file of a prepared folder with the manifest.

    Returns:
      One line for each damaged or missing file, naming it; empty if all is well.
    """
    folder = pathlib.Path(folder)
    problems = []
    for split in Manifest.read(folder).splits.values():
        expected = [(s.file, s.sha256) for s in split.shards]
        for file, sha256 in [*expected, (split.lengths_file, split.lengths_sha256)]:
            path = folder / file
            if not path.exists():
                problems.append(f"{path}: missing")
            elif sha256_of(path) != sha256:
                problems.append(f"{path}: its SHA-256 is not that of the manifest")
    return problems


def sha256_of(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file."""
    with pathlib.Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
