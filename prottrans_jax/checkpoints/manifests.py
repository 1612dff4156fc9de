"""Step directories of checkpoints and their SHA-256 manifests.

A step is sound only if every file in its manifest exists with the listed size and hash.
This module handles files and hashes; `checkpointing` handles their content.

On a disk a step gets its number by a rename when it is complete, and loses it by a
rename before it is deleted. In a bucket, which has no rename, it has its number all the
time: two objects that are written last and deleted first, the manifest and then Orbax's
mark, say that it is complete. A step with neither is unfinished; readers do not see it,
and the run removes it when it starts.
"""

from collections.abc import Mapping
import concurrent.futures
import errno
import json
import math
import os
import pathlib
from typing import Any

from absl import logging
from etils import epath

from prottrans_jax.files import buckets, digests, folders, json_text, writing

NAME = "sha256.json"
# A step gets this ending before its files are deleted, so that readers never see a
# partly deleted step under its number, even if the deletion is interrupted.
_DELETED = ".deleted"
# Earlier versions created this file in a step before they deleted it.
_DELETING = "DELETING"
# Orbax writes these at the commit, after the hashing.
_COMMITTED = "commit_success.txt"  # Only in buckets.
_AFTER_COMMIT = ("_CHECKPOINT_METADATA", _COMMITTED)


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, missing or locked by another run."""


class GoneError(CheckpointError):
    """A step does not exist; its run may have deleted it meanwhile."""


def committed(directory: epath.Path) -> list[int]:
    """Steps in a directory that have a manifest, in increasing order; not verified."""
    return [
        step
        for step in step_numbers(directory)
        if (directory / str(step) / NAME).exists()
        and not (directory / str(step) / _DELETING).exists()
    ]


def is_being_deleted(path: epath.Path) -> bool:
    """Whether a deletion of a step has begun and is not complete."""
    return path.name.endswith(_DELETED) or (path / _DELETING).exists()


def is_unfinished(path: epath.Path) -> bool:
    """Whether a step in a bucket is being saved or deleted, or one of these ended."""
    return buckets.is_bucket(path) and not any(
        (path / name).exists() for name in (NAME, _COMMITTED)
    )


def is_gone(path: epath.Path) -> bool:
    """Whether a step was deleted, or is being deleted now."""
    return not path.exists() or is_being_deleted(path) or is_unfinished(path)


def write(directory: epath.Path, step: int) -> None:
    """Hashes every file of a step that is about to be committed."""
    names = [n for n in folders.files_below(directory) if n not in _AFTER_COMMIT]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        hashes = pool.map(lambda name: digests.read(directory / name), names)
    files = {
        name: {"bytes": digest.num_bytes, "sha256": digest.hexdigest()}
        for name, digest in zip(names, hashes, strict=True)
    }
    manifest = {"step": step, "files": files}
    manifest["sha256"] = _hash_of_manifest(manifest)
    text = json.dumps(manifest, indent=1)
    writing.write_synced(directory / NAME, text.encode())


def problem(directory: epath.Path) -> str | None:
    """Why a step is damaged, with the file at fault; None if it is sound.

    Raises:
      OSError: a bucket is not available, which does not make the step a damaged one.
    """
    path = directory / NAME
    try:
        manifest = json_text.parse(path.read_text())
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
        return f"{directory / _DELETING}: its deletion was interrupted"

    def check(name: str) -> str | None:
        expected = files[name]
        place = pathlib.PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            return f"{path}: names {name}, which is outside the step"
        file = pathlib.Path(directory / name)
        if file.exists() and not file.is_file():
            # Reading a device or a pipe would not end.
            return f"{file}: not a regular file"
        try:
            digest = digests.read(directory / name)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            if buckets.is_bucket(directory) and not is_missing:
                raise
            reason = os.strerror(errno.ENOENT) if is_missing else error.strerror
            return f"{directory / name}: {reason or error}"
        if (size := digest.num_bytes) != expected["bytes"]:
            return f"{directory / name}: {size} bytes instead of {expected['bytes']}"
        if digest.hexdigest() != expected["sha256"]:
            return f"{directory / name}: SHA-256 does not match its manifest"
        return None

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return next((fault for fault in pool.map(check, files) if fault), None)


def choose(
    directory: epath.Path,
    step: int | None,
    *,
    max_lost_steps: float | None = math.inf,
    way_out: str = "or name the step to read",
) -> dict[str, Any]:
    """Finds the newest sound step, or verifies `step`.

    Steps that the run deletes meanwhile are skipped: newer ones exist then.

    Args:
      directory: parent of the steps.
      step: considers only this step; None: the newest sound one.
      max_lost_steps: limit of the newest damaged step minus the chosen one. Step 0 is
        refused if any step is damaged, because it holds nothing learnt. None: no limit,
        and step 0 is accepted.
      way_out: advice in the error besides restoring the files.

    Returns:
      {"step": the chosen step or None, "damaged": newer, damaged steps}.

    Raises:
      GoneError: `step` does not exist.
      CheckpointError: `step` is damaged, no step is sound, or too many steps would be
        lost.
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
        lines = "\n".join(f"  step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(
            f"{directory}: no sound checkpoint:\n{lines}\n"
            "Restore the files, or remove these steps to start from step 0."
        )
    return {"step": None, "damaged": []}


def _accept_loss(
    directory: epath.Path,
    candidate: int,
    damaged: Mapping[int, str],
    max_lost_steps: float | None,
    way_out: str,
) -> None:
    """Logs how many steps an older checkpoint loses; raises if they are too many."""
    newest = max(damaged)
    lost = newest - candidate
    if max_lost_steps is not None and (candidate == 0 or lost > max_lost_steps):
        steps = ", ".join(map(str, sorted(damaged)))
        raise CheckpointError(
            f"{directory}: the checkpoints of steps {steps} are damaged (the newest: "
            f"{damaged[newest]}). The newest sound one is of step {candidate}: {lost} "
            f"steps would be lost. Restore the files, {way_out}."
        )
    logging.warning("Using step %d instead, %d steps earlier.", candidate, lost)


def step_numbers(directory: epath.Path) -> list[int]:
    """Steps that have a directory, committed or not, in increasing order."""
    names = [path.name for path in folders.children(directory)]
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))


def delete(path: epath.Path) -> None:
    """Deletes a step; after an interruption no partial step passes for a sound one."""
    if not path.exists():
        return
    if buckets.is_bucket(path):
        for name in (_COMMITTED, NAME):
            writing.remove(path / name)
        writing.remove(path)
        return
    renamed = path.with_name(path.name + _DELETED)
    writing.remove(renamed)
    path.rename(renamed)
    writing.remove(renamed)


def set_aside(path: epath.Path) -> epath.Path:
    """Renames a damaged step so that it no longer counts; returns the new path."""
    return epath.Path(writing.set_aside(path, path.name + ".damaged-{}"))


def _hash_of_manifest(manifest: Mapping[str, Any]) -> str:
    content = {"step": manifest["step"], "files": manifest["files"]}
    return digests.of_json(content)
