"""Step directories of checkpoints under a SHA-256 manifest.

A step is believed only if every file it lists is there with its size and hash. This
file knows files and hashes; what is in them is the business of `checkpoints`.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath

NAME = "sha256.json"
# Its presence says that a deletion began: what is left of such a step is rubbish.
_DELETING = "DELETING"
# Orbax stamps these when it commits, after the hashing. Nothing here reads them.
_AFTER_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be believed, or is locked by another run."""


def committed(directory: epath.Path) -> list[int]:
    """Steps in a directory that have a manifest, in rising order; not verified."""
    return [
        step
        for step in step_numbers(directory)
        if (directory / str(step) / NAME).exists()
        and not (directory / str(step) / _DELETING).exists()
    ]


def is_being_deleted(path: epath.Path) -> bool:
    """Whether the deletion of a step began and was cut short."""
    return (path / _DELETING).exists()


def write(directory: epath.Path, step: int) -> None:
    """Hashes every file of a step that is about to be committed."""
    names = sorted(
        name for name in _files_below(directory) if name not in _AFTER_COMMIT
    )
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        hashes = pool.map(lambda name: _hash(directory / name), names)
    files = {
        name: {"bytes": size, "sha256": digest}
        for name, (size, digest) in zip(names, hashes, strict=True)
    }
    manifest = {"step": step, "files": files}
    manifest["sha256"] = _hash_of_manifest(manifest)
    path = directory / (NAME + ".tmp")
    path.write_text(json.dumps(manifest, indent=1))
    path.rename(directory / NAME)


def problem(directory: epath.Path) -> str | None:
    """What makes a step unbelievable, with the file at fault; None if it is sound."""
    path = directory / NAME
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
        if manifest["sha256"] != _hash_of_manifest(manifest):
            return f"{path}: its own hash does not match"
        if manifest["step"] != int(directory.name):
            return f"{path}: written for step {manifest['step']}"
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: unreadable ({error!r})"
    if (directory / _DELETING).exists():
        return f"{directory / _DELETING}: its deletion was cut short"

    def check(name: str) -> str | None:
        expected = files[name]
        try:
            size, digest = _hash(directory / name)
        except OSError as error:
            return f"{directory / name}: {error.strerror or error}"
        if size != expected["bytes"]:
            return f"{directory / name}: {size} bytes instead of {expected['bytes']}"
        if digest != expected["sha256"]:
            return f"{directory / name}: SHA-256 does not match its manifest"
        return None

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return next((found for found in pool.map(check, files) if found), None)


def choose(directory: epath.Path, step: int | None) -> dict[str, Any]:
    """The newest sound step, or `step`; and the damaged ones met on the way."""
    present = step_numbers(directory)
    if step is not None and step not in present:
        raise CheckpointError(f"{directory}: no step {step}; there are {present}.")
    damaged: dict[int, str] = {}
    for candidate in reversed(present) if step is None else [step]:
        fault = problem(directory / str(candidate))
        if fault is None:
            if damaged:
                logging.warning("Using step %d instead.", candidate)
            return {"step": candidate, "damaged": sorted(damaged)}
        logging.error("Checkpoint %d is damaged: %s.", candidate, fault)
        damaged[candidate] = fault
    if damaged:
        listed = "\n".join(f"  step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(
            f"{directory}: no sound checkpoint:\n{listed}\n"
            "Bring the files back, or remove these steps to start anew."
        )
    return {"step": None, "damaged": []}


def step_numbers(directory: epath.Path) -> list[int]:
    """Steps that have a directory, committed or not, in rising order."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))


def delete(path: epath.Path) -> None:
    """Deletes a step so that a kill in the midst of it leaves nothing believable."""
    if not path.exists():
        return
    (path / _DELETING).write_text("")
    (path / NAME).unlink(missing_ok=True)
    remove_tree(path)


def remove_tree(path: epath.Path) -> None:
    """Removes a file or a directory with all that is in it."""
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)


def _files_below(directory: epath.Path) -> Iterator[str]:
    for root, _, names in directory.walk():
        for name in names:
            yield str((epath.Path(root) / name).relative_to(directory))


def _hash(path: epath.Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _hash_of_manifest(manifest: Mapping[str, Any]) -> str:
    content = {"step": manifest["step"], "files": manifest["files"]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
