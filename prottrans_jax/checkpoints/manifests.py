"""Step directories of checkpoints under a SHA-256 manifest.

A step is believed only if every file it lists is there with its size and hash. This
file knows files and hashes; what is in them is the business of `checkpoints`.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import hashlib
import json
import math
from typing import Any

from absl import logging
from etils import epath

NAME = "sha256.json"
# A step gets this ending before its files are deleted: its name never leads to a part
# of it, however a deletion ends and whoever reads meanwhile.
_DELETED = ".deleted"
# Earlier versions put this file into a step that they began to delete.
_DELETING = "DELETING"
# Orbax stamps these when it commits, after the hashing. Nothing here reads them.
_AFTER_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be believed, or is locked by another run."""


class GoneError(CheckpointError):
    """A step is not there; the run that writes it may have deleted it meanwhile."""


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
    return path.name.endswith(_DELETED) or (path / _DELETING).exists()


def is_gone(path: epath.Path) -> bool:
    """Whether a step was deleted, or is being deleted now."""
    return not path.exists() or is_being_deleted(path)


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


def choose(
    directory: epath.Path,
    step: int | None,
    *,
    max_lost_steps: float | None = math.inf,
    way_out: str = "or name the step to read",
) -> dict[str, Any]:
    """The newest sound step, or `step`; and the damaged ones met on the way.

    Steps that the run deletes meanwhile are passed over: newer ones are there then.

    Args:
      directory: of the steps.
      step: this one and no other; None: the newest sound one.
      max_lost_steps: a sound step so much older than the newest, damaged one is
        refused. Step 0 is refused behind any damaged one, since it holds nothing
        learnt. None: no limit, and step 0 will do.
      way_out: what the error advises beside bringing the files back.

    Raises:
      GoneError: `step` is not there.
      CheckpointError: `step` is damaged, none is sound, or too much would be lost.
    """
    damaged: dict[int, str] = {}
    while True:
        present = [
            n for n in step_numbers(directory) if not is_gone(directory / str(n))
        ]
        if step is not None and step not in present:
            raise GoneError(f"{directory}: no step {step}; there are {present}.")
        candidates = [n for n in present if step in (None, n) and n not in damaged]
        if not candidates:
            break
        candidate = max(candidates)
        fault = problem(directory / str(candidate))
        if fault is None:
            if damaged:
                _accept_loss(directory, candidate, damaged, max_lost_steps, way_out)
            return {"step": candidate, "damaged": sorted(damaged)}
        if not is_gone(directory / str(candidate)):
            logging.error("Checkpoint %d is damaged: %s.", candidate, fault)
            damaged[candidate] = fault
    if damaged:
        listed = "\n".join(f"  step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(
            f"{directory}: no sound checkpoint:\n{listed}\n"
            "Bring the files back, or remove these steps to start anew."
        )
    return {"step": None, "damaged": []}


def _accept_loss(
    directory: epath.Path,
    candidate: int,
    damaged: Mapping[int, str],
    max_lost_steps: float | None,
    way_out: str,
) -> None:
    """Says how many steps a fall-back loses; raises if these are too many."""
    newest = max(damaged)
    lost = newest - candidate
    if max_lost_steps is not None and (candidate == 0 or lost > max_lost_steps):
        steps = ", ".join(map(str, sorted(damaged)))
        raise CheckpointError(
            f"{directory}: the checkpoints of steps {steps} are damaged (the newest: "
            f"{damaged[newest]}). The newest sound one is of step {candidate}: {lost} "
            f"steps would be lost. Bring the files back, {way_out}."
        )
    logging.warning("Using step %d instead, %d steps earlier.", candidate, lost)


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
    renamed = path.with_name(path.name + _DELETED)
    remove_tree(renamed)
    path.rename(renamed)
    remove_tree(renamed)


def set_aside(path: epath.Path) -> epath.Path:
    """Renames a damaged step so that it is no step any more; returns the new path."""
    number = 1
    while (renamed := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(renamed)
    return renamed


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
