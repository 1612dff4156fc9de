"""Checkpoints verified by a SHA-256 manifest.

Orbax writes the arrays asynchronously and sharded into a temporary directory, and
commits it with one rename; in a bucket, with an object that it writes last (see
`manifests`). It stores no checksum of their content, so a flipped bit would be restored
silently. Here every file is hashed before the commit, and verified before a restore:

    DIRECTORY/STEP/             one committed step
        sha256.json             the manifest: every file below, its size and hash
        metadata.json           loader state, seed, resolved configuration ...
        _METADATA, d/, ...      arrays, as Orbax's PyTreeCheckpointer reads them
    DIRECTORY/.lock             held by the one run that writes here
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import json
import math
import os
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
from orbax import checkpoint as ocp

from prottrans_jax import types
from prottrans_jax.checkpoints import (
    bucket_arrays,
    manifests,
    orbax_messages,
    stored_arrays,
    stored_steps,
)
from prottrans_jax.distributed import barriers
from prottrans_jax.files import buckets, folders, leases, locks, writing

_TMP = ".orbax-checkpoint-tmp"
# Attempts to remove the folder of a failed save while threads still write to it.
_MAX_REMOVALS = 10


class SaveError(manifests.CheckpointError):
    """A step was not saved. Raised once for each failed save.

    Attributes:
      step: the step that was lost; -1: of a save that had seemed complete.
      last_good: newest sound step on disk; None: there is none.
    """

    def __init__(self, message: str, step: int, last_good: int | None):
        super().__init__(message)
        self.step = step
        self.last_good = last_good


class Checkpointer:
    """Saves and restores the steps of one run.

    Every process of the run creates one and calls the same methods in the same order.
    Process 0 hashes, deletes and chooses the step to restore; the others wait for it
    with a limit.

    Args:
      directory: parent of the steps, e.g. MODEL_DIR/checkpoints; shared by processes.
      keep: number of newest steps to keep; None keeps all.
      keep_period: steps that are multiples of it are never deleted.
      save_dtype: dtype of stored floating-point parameters (leaves below `params`),
        e.g. "bfloat16"; other leaves keep their dtypes. None: all leaves do.
      read_only: takes no lock and deletes nothing: for evaluating a running run.
      timeout_s: limit of each wait for storage or other processes.

    Attributes:
      lock: of the directory; None on processes other than 0 and with `read_only`.

    Raises:
      manifests.CheckpointError: another run writes to `directory`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int | None = 3,
        keep_period: int | None = None,
        save_dtype: DTypeLike | None = None,
        *,
        read_only: bool = False,
        timeout_s: float = 1200.0,
    ):
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: at least 1 step must be kept (None: all).")
        if keep_period is not None and keep_period < 1:
            raise ValueError(f"keep_period={keep_period} must be positive or None.")
        self._directory = stored_steps.absolute(directory)
        self._keep = keep
        self._keep_period = keep_period
        self._save_dtype = None if save_dtype is None else jnp.dtype(save_dtype)
        self._read_only = read_only
        self._timeout_s = timeout_s
        self._pending: int | None = None
        self._kept_besides: int | None = None
        # Steps that this object wrote or verified.
        self._sound: set[int] = set()
        # Steps whose files do not match their manifest.
        self._damaged: set[int] = set()
        self._failed: set[int] = set()
        self.lock: locks.Lock | None = None
        self._deleter = concurrent.futures.ThreadPoolExecutor(1, "delete_checkpoints")
        orbax_messages.drop_repeated()
        # Compression saves 8 % but makes a save two to three times as expensive, and
        # would slow the steps that overlap it.
        self._handler = _StepHandler(use_compression=False)
        processes = set(range(jax.process_count())) if jax.process_count() > 1 else None
        self._writer = ocp.AsyncCheckpointer(
            self._handler,
            async_options=ocp.options.AsyncOptions(timeout_secs=int(timeout_s)),
            # With `active_processes` Orbax uses barriers with a timeout; its default is
            # a collective without one.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=processes
            ),
            temporary_path_class=bucket_arrays.prepare(self._directory),
        )
        if not read_only:
            self._on_process_zero("open", self._open)

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any]) -> None:
        """Starts a save; returns when the arrays are copied off the devices.

        Waits for the previous save, not for this one. Does nothing if this object has
        saved or restored `step` already; replaces any other directory of this number.

        Args:
          step: number of the step.
          state: tree of arrays.
          metadata: JSON-able; returned by `restore`.

        Raises:
          SaveError: the *previous* save failed, and this one was not started (call
            again), or this one failed before its arrays were copied.
          leases.LostError: another process writes to the directory.
        """
        if self._read_only:
            raise ValueError(f"{self._directory} was opened read-only.")
        if step < 0:
            raise ValueError(f"step={step} is negative.")
        self.wait()
        if step in self._sound:
            return
        path = self._directory / str(step)
        self._on_process_zero("replace", lambda: self._delete(path))
        arrays = stored_arrays.by_name(state)
        save_args = {
            name: ocp.SaveArgs(dtype=self._stored_dtype(name, leaf))
            for name, leaf in arrays.items()
        }
        self._failed.discard(step)
        self._handler.step = step
        self._handler.metadata_text = json.dumps(metadata, indent=1, sort_keys=True)
        self._pending = step
        try:
            self._writer.save(
                path,
                args=_StepArgs(
                    stored_arrays.nested(arrays),
                    save_args=stored_arrays.nested(save_args),
                ),
            )
        except Exception as error:
            raise self._lost(error) from error

    def keep_besides(self, step: int | None) -> None:
        """Never deletes `step`, and no longer keeps that of an earlier call."""
        self._kept_besides = step

    def check(self) -> None:
        """Raises if the pending save has failed already, or the lock is lost.

        Waits for nothing and makes no request.

        Raises:
          SaveError: see `wait`.
          leases.LostError: another process writes to the directory.
        """
        self._check_lock(math.inf)
        try:
            self._writer.check_for_errors()
        except Exception as error:
            raise self._lost(error) from error

    def wait(self) -> None:
        """Waits until the last save is committed.

        Raises:
          SaveError: the save failed; names the lost step and the newest sound one.
        """
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._lost(error) from error
        if self._pending is None:
            return
        self._sound.add(self._pending)
        self._damaged.discard(self._pending)
        self._pending = None
        if jax.process_index() == 0:
            self._clear_failed()
            self._deleter.submit(self._delete_old, self.steps())

    def close(self) -> None:
        """Waits for the last save and releases the lock of the directory.

        Raises:
          SaveError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._deleter.shutdown()
            self._writer.close()
            if jax.process_index() == 0:
                self._clear_failed()
            if self.lock is not None:
                self.lock.release()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Committed steps with a manifest, in increasing order.

        Lists the directory at every call: the list in a live Orbax manager may be wrong
        after a failed save.
        """
        return manifests.committed(self._directory)

    def delete_after(self, step: int) -> None:
        """Deletes the steps after `step`, for a run that goes back to it.

        Raises:
          manifests.CheckpointError: there is no committed step up to `step`.
        """
        self.wait()

        def delete() -> None:
            steps = self.steps()
            if not any(number <= step for number in steps):
                raise manifests.CheckpointError(
                    f"{self._directory}: the run cannot go back to step {step} or an "
                    f"earlier one; there are {steps}. Keep more checkpoints."
                )
            for number in manifests.step_numbers(self._directory):
                if number > step:
                    logging.warning(
                        "Deleting checkpoint %d: the run goes back.", number
                    )
                    self._delete(self._directory / str(number))

        self._on_process_zero("delete_after", delete)
        self._sound = {number for number in self._sound if number <= step}

    def restore(
        self,
        abstract_state: PyTree,
        step: int | None = None,
        *,
        max_lost_steps: float | None = math.inf,
        way_out: str = "or name the step to read",
    ) -> stored_steps.Restored | None:
        """Restores the newest step whose files all match its manifest.

        A damaged step is logged with the damaged file, and the previous step is tried,
        back to `max_lost_steps` but never to step 0. If `max_lost_steps` is None,
        damaged steps are renamed, unless this object is read-only. The mesh may differ
        from the one at the save.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`. Arrays get their dtypes and
            shardings; without a sharding, the first local device.
          step: restores only this step; None: the newest sound one.
          max_lost_steps: see `manifests.choose`.
          way_out: see `manifests.choose`.

        Returns:
          The restored step; None if the directory has no step.

        Raises:
          manifests.CheckpointError: `step` is damaged or absent, or steps exist but
            none is sound or new enough. Starting anew would silently discard the run.
          stored_arrays.MismatchError: names, shapes or kinds of dtype differ; lists
            both sides.
        """
        self.wait()
        choice = self._on_process_zero(
            "choose",
            lambda: manifests.choose(
                self._directory, step, max_lost_steps=max_lost_steps, way_out=way_out
            ),
        )
        self._damaged.update(choice["damaged"])
        if choice["step"] is None:
            return None
        chosen = int(choice["step"])
        path = self._directory / str(chosen)
        if not path.exists():
            raise manifests.CheckpointError(
                f"process {jax.process_index()} does not see {path}, which process 0 "
                "restores from. All processes need the same, shared model_dir."
            )
        abstract_arrays = stored_arrays.by_name(abstract_state)
        with stored_steps.explained(path):
            stored = stored_arrays.on_disk(path)
        if difference := stored_arrays.compare(abstract_arrays, stored):
            raise stored_arrays.MismatchError(
                f"{path} does not fit this run "
                f"{difference.summary(stored_arrays.remedy(abstract_arrays, stored))}",
                stored_steps.read_metadata(path),
            )
        with stored_steps.explained(path):
            restored = stored_arrays.read(path, abstract_arrays)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), restored)
        self._sound.add(chosen)
        metadata = stored_steps.read_metadata(path)
        lost_steps = max(choice["damaged"], default=chosen) - chosen
        if max_lost_steps is None and not self._read_only:
            self._on_process_zero("set_aside", self._set_damaged_aside)
        return stored_steps.Restored(chosen, state, metadata, lost_steps)

    def _set_damaged_aside(self) -> None:
        for step in sorted(self._damaged):
            renamed = manifests.set_aside(self._directory / str(step))
            logging.warning("The damaged checkpoint %d is now %s.", step, renamed)

    def _stored_dtype(self, name: str, leaf: types.Shaped) -> Any:
        if (
            self._save_dtype is not None
            and name.startswith("params/")
            and jnp.issubdtype(leaf.dtype, jnp.floating)
        ):
            return self._save_dtype
        return None

    def _on_process_zero(self, name: str, function: Callable[[], Any]) -> Any:
        return barriers.from_process_zero(
            f"checkpoints/{name}", function, self._timeout_s
        )

    def _lost(self, error: Exception) -> SaveError:
        step, self._pending = self._pending, None
        self._end_failed_save()
        if step is not None:
            self._failed.add(step)
        if jax.process_index() == 0:
            self._clear_failed()
        good_steps = [s for s in self.steps() if s not in self._damaged]
        last_good = good_steps[-1] if good_steps else None
        lost = "a step that seemed complete" if step is None else f"step {step}"
        message = (
            f"{self._directory}: {lost} was not saved ({stored_steps.reason(error)}). "
            f"Last good step: {'none' if last_good is None else last_good}."
        )
        return SaveError(message, -1 if step is None else step, last_good)

    def _clear_failed(self) -> None:
        """Removes the files of failed saves, which may fill the disk.

        Threads of tensorstore that Orbax no longer waits for may create the folder
        again; a later call removes it.
        """
        for step in self._failed:
            try:
                self._check_lock(leases.RECENT_S)
            except OSError:  # They may be those of another process.
                return
            for path in self._left_by_save(step):
                _remove_while_written(path)

    def _left_by_save(self, step: int) -> list[epath.Path]:
        """Folders that an unfinished save of a step has left."""
        if buckets.is_bucket(self._directory):
            path = self._directory / str(step)
            return [path] if path.exists() and manifests.is_unfinished(path) else []
        return list(self._directory.glob(f"{step}{_TMP}*"))

    def _end_failed_save(self) -> None:
        """Waits for the remaining threads of a failed save.

        Orbax writes arrays and its own metadata in several threads. Each thread raises
        its error once; a late error would be attributed to the next step.
        """
        while True:
            try:
                self._writer.wait_until_finished()
                return
            except Exception as error:
                logging.debug("The same save failed in a second place: %s", error)

    def _open(self) -> None:
        self.lock = _take_lock(self._directory)
        self._handler.before_commit = self.lock.check
        unfinished = [
            self._directory / str(step)
            for step in manifests.step_numbers(self._directory)
            if manifests.is_unfinished(self._directory / str(step))
        ]
        for path in folders.children(self._directory):
            if _TMP in path.name or path in unfinished:
                logging.warning("Removing %s, left by an interrupted save.", path)
                writing.remove(path)
            elif manifests.is_being_deleted(path):
                writing.remove(path)

    def _check_lock(self, max_age_s: float) -> None:
        if self.lock is not None:
            self.lock.check(max_age_s)

    def _delete(self, path: epath.Path) -> None:
        self._check_lock(leases.RECENT_S)
        manifests.delete(path)

    def _delete_old(self, steps: list[int]) -> None:
        sound = [step for step in steps if step not in self._damaged]
        if self._keep is None:
            return
        for step in sound[: -self._keep]:
            if self._keep_period and step % self._keep_period == 0:
                continue
            if step == self._kept_besides:
                continue
            try:
                self._delete(self._directory / str(step))
            except OSError as error:
                logging.warning("Could not delete checkpoint %d: %s", step, error)


def _remove_while_written(path: epath.Path) -> None:
    """Removes a folder to which threads that Orbax does not wait for may still write.

    If this fails, the next start of a run removes the folder.
    """
    for _ in range(_MAX_REMOVALS):
        try:
            return writing.remove(path)
        except OSError as error:  # A file was created during the removal.
            problem = error
            time.sleep(0.1)
    logging.warning("%s could not be removed: %s.", path, problem.strerror)


class _StepHandler(ocp.PyTreeCheckpointHandler):
    """Adds the metadata and the manifest to a step just before it is committed."""

    step = 0
    metadata_text = "{}"
    before_commit: Callable[[], None] = staticmethod(lambda: None)

    def finalize(self, directory: epath.Path) -> None:
        """Runs in the background, on process 0, after every process has written."""
        super().finalize(directory)
        self.before_commit()
        (directory / stored_steps.METADATA).write_text(self.metadata_text)
        manifests.write(directory, self.step)


@ocp.args.register_with_handler(_StepHandler, for_save=True, for_restore=True)
class _StepArgs(ocp.args.PyTreeSave):
    """Arguments of `_StepHandler`; Orbax looks handlers up by their class."""


def _take_lock(directory: epath.Path) -> locks.Lock:
    """Creates the directory and acquires DIRECTORY/.lock."""
    try:
        return locks.acquire(
            directory / ".lock",
            output=directory,
            advice="Stop that run, or choose another model_dir.",
        )
    except locks.LockedError as error:
        raise manifests.CheckpointError(str(error)) from error
    except OSError as error:
        raise manifests.CheckpointError(
            f"{directory} cannot be written to: {error.strerror}. Make room or give "
            "write permission, or choose another model_dir."
        ) from error
