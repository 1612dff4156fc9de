"""Checkpoints that are believed only after their SHA-256 manifest matches.

Orbax writes the arrays: asynchronously, sharded, into a temporary directory that one
rename commits. It keeps no checksum of their content, so a flipped bit would restore
silently wrong. Here every file is hashed before the rename, and again before anything
is read back:

    DIRECTORY/STEP/             one committed step
        sha256.json             the manifest: every file below, its size and hash
        metadata.json           loader state, seed, resolved configuration ...
        _METADATA, d/, ...      arrays, as Orbax's PyTreeCheckpointer reads them
    DIRECTORY/.lock             held by the one run that writes here
"""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
import dataclasses
import json
import logging as std_logging
import math
import os
import re
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
import numpy as np
from orbax import checkpoint as ocp

from prottrans_jax.checkpoints import manifests, stored_arrays
from prottrans_jax.distributed import multihost
from prottrans_jax.files import locks, paths

_METADATA = "metadata.json"
_TMP = ".orbax-checkpoint-tmp"
# Times that the folder of a failed save is removed, while it is still written to.
_REMOVALS = 10

CheckpointError = manifests.CheckpointError
GoneError = manifests.GoneError
MismatchError = stored_arrays.MismatchError


class SaveError(CheckpointError):
    """A step was not saved. Raised once; the next `save` goes ahead.

    Attributes:
      step: the step that was lost.
      last_good: newest step on disk, None without any.
    """

    def __init__(self, message: str, step: int, last_good: int | None):
        super().__init__(message)
        self.step = step
        self.last_good = last_good


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` read.

    Attributes:
      step: the step that was restored.
      state: tree like the abstract state, on its shardings and in its dtypes.
      metadata: the JSON saved with it.
      lost_steps: steps between it and the newest, damaged one.
    """

    step: int
    state: Any
    metadata: dict[str, Any]
    lost_steps: int = 0


class Checkpointer:
    """Saves and restores the steps of one run.

    Every process of the run makes one and calls the same methods in the same order.
    Process 0 hashes, deletes and decides; the others wait for it with a limit.

    Args:
      directory: where the steps lie, e.g. MODEL_DIR/checkpoints; shared by processes.
      keep: number of newest steps kept; None keeps all.
      keep_period: steps that are multiples of it are kept for good.
      save_dtype: floating-point parameters (leaves below `params`) are stored in it,
        e.g. "bfloat16"; everything else keeps its dtype. None stores all as they are.
      read_only: takes no lock and cleans nothing: for evaluating a running run.
      timeout_s: limit in seconds of each wait for storage or other processes.

    Raises:
      CheckpointError: another run writes to `directory`.
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
        self._directory = _absolute(directory)
        self._keep = keep
        self._keep_period = keep_period
        self._save_dtype = None if save_dtype is None else jnp.dtype(save_dtype)
        self._read_only = read_only
        self._timeout_s = timeout_s
        self._pending: int | None = None
        # Steps this object wrote or verified, and steps it found damaged.
        self._sound: set[int] = set()
        self._damaged: set[int] = set()
        self._failed: set[int] = set()
        self._lock: locks.Lock | None = None
        self._deleter = concurrent.futures.ThreadPoolExecutor(1, "delete_checkpoints")
        logging.get_absl_logger().addFilter(_drop_orbax_chatter)
        if not isinstance(sys.unraisablehook, _DropTensorstoreChatter):
            sys.unraisablehook = _DropTensorstoreChatter(sys.unraisablehook)
        # Weights shrink by 8 %, for two to three times the work of a save, which would
        # be taken from the steps it overlaps.
        self._handler = _StepHandler(use_compression=False)
        processes = set(range(jax.process_count())) if jax.process_count() > 1 else None
        self._writer = ocp.AsyncCheckpointer(
            self._handler,
            async_options=ocp.options.AsyncOptions(timeout_secs=int(timeout_s)),
            # Named processes make Orbax use barriers that time out; its default is a
            # collective without a limit.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=processes
            ),
        )
        if not read_only:
            self._on_process_zero("open", self._open)

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any]) -> None:
        """Starts to save; returns when the arrays are copied off the devices.

        Waits for the save before, not for this one. A step that this object saved or
        restored already is left as it is; another one of this number is replaced.

        Args:
          step: number of the step.
          state: tree of arrays.
          metadata: JSON-able; comes back from `restore`.

        Raises:
          SaveError: the *previous* save failed (and this one was not started: call
            again), or this one failed before its copy was done.
        """
        if self._read_only:
            raise ValueError(f"{self._directory} was opened read-only.")
        if step < 0:
            raise ValueError(f"step={step} is negative.")
        self.wait()
        if step in self._sound:
            return
        path = self._directory / str(step)
        self._on_process_zero("replace", lambda: manifests.delete(path))
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

    def check(self) -> None:
        """Raises if the save that is going on has failed already; never waits for it.

        Raises:
          SaveError: see `wait`.
        """
        try:
            self._writer.check_for_errors()
        except Exception as error:
            raise self._lost(error) from error

    def wait(self) -> None:
        """Waits until the last save is committed.

        Raises:
          SaveError: it was not; names the step lost and the newest one on disk.
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
        """Waits for the last save and lets another run write here.

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
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps on disk that are committed and have a manifest, in rising order.

        Read from the directory at every call: what a live Orbax manager believes may
        not be there after a failed save.
        """
        return manifests.committed(self._directory)

    def restore(
        self,
        abstract_state: PyTree,
        step: int | None = None,
        *,
        max_lost_steps: float | None = math.inf,
        way_out: str = "or name the step to read",
    ) -> Restored | None:
        """Reads the newest step whose every file matches its manifest.

        A damaged step is logged with the file at fault, and the one before it is
        tried, back to `max_lost_steps` and never to step 0. With None as limit damaged
        steps are renamed, unless this object is read-only. The mesh need not be the
        one of the save.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`; arrays come back in their
            dtypes and on their shardings (without one: the first local device).
          step: this one and no other.
          max_lost_steps: see `manifests.choose`.
          way_out: see `manifests.choose`.

        Returns:
          None if nothing was ever saved here.

        Raises:
          CheckpointError: `step` is damaged or absent, or steps exist but none is
            sound or new enough: going on would throw a run away in silence.
          MismatchError: other arrays, shapes or kinds of dtype; lists both sides.
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
            raise CheckpointError(
                f"process {jax.process_index()} does not see {path}, which process 0 "
                "restores from. All processes need the same, shared model_dir."
            )
        wanted = stored_arrays.by_name(abstract_state)
        with _explained(path):
            stored = stored_arrays.on_disk(path)
        if difference := stored_arrays.compare(wanted, stored):
            raise MismatchError(
                f"{path} does not fit this run "
                f"{difference.summary(stored_arrays.REMEDY)}",
                _read_metadata(path),
            )
        with _explained(path):
            restored = stored_arrays.read(path, wanted)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), restored)
        self._sound.add(chosen)
        metadata = _read_metadata(path)
        lost_steps = max(choice["damaged"], default=chosen) - chosen
        if max_lost_steps is None and not self._read_only:
            self._on_process_zero("set_aside", self._set_damaged_aside)
        return Restored(chosen, state, metadata, lost_steps)

    def _set_damaged_aside(self) -> None:
        for step in sorted(self._damaged):
            renamed = manifests.set_aside(self._directory / str(step))
            logging.warning("The damaged checkpoint %d is now %s.", step, renamed)

    def _stored_dtype(self, name: str, leaf: Any) -> Any:
        if (
            self._save_dtype is not None
            and name.startswith("params/")
            and jnp.issubdtype(leaf.dtype, jnp.floating)
        ):
            return self._save_dtype
        return None

    def _on_process_zero(self, name: str, function: Callable[[], Any]) -> Any:
        return multihost.from_process_zero(
            f"checkpoints/{name}", function, self._timeout_s
        )

    def _lost(self, error: Exception) -> SaveError:
        step, self._pending = self._pending, None
        self._end_failed_save()
        if step is not None:
            self._failed.add(step)
        if jax.process_index() == 0:
            self._clear_failed()
        good = [good for good in self.steps() if good not in self._damaged]
        last = good[-1] if good else None
        message = (
            f"{self._directory}: step {step} was not saved ({_reason(error)}). "
            f"Last good step: {last}."
        )
        return SaveError(message, -1 if step is None else step, last)

    def _clear_failed(self) -> None:
        """Removes what failed saves have written, which may be all that fills the disk.

        Tensorstore may still write what Orbax no longer waits for, and make the folder
        anew: a later call removes it again.
        """
        for step in self._failed:
            for path in self._directory.glob(f"{step}{_TMP}*"):
                _remove_what_is_written(path)

    def _end_failed_save(self) -> None:
        """Waits for what is still written of a save that failed.

        Orbax writes arrays and its own metadata in several threads; each of them raises
        its error once, and a later one would be taken for that of another step.
        """
        while True:
            try:
                self._writer.wait_until_finished()
                return
            except Exception as error:
                logging.debug("The same save failed in a second place: %s", error)

    def _open(self) -> None:
        self._lock = _take_lock(self._directory)
        for path in sorted(self._directory.iterdir()):
            if _TMP in path.name:
                logging.warning("Removing %s, left by a save cut short.", path)
                manifests.remove_tree(path)
            elif manifests.is_being_deleted(path):
                manifests.remove_tree(path)

    def _delete_old(self, steps: list[int]) -> None:
        sound = [step for step in steps if step not in self._damaged]
        if self._keep is None:
            return
        for step in sound[: -self._keep]:
            if self._keep_period and step % self._keep_period == 0:
                continue
            try:
                manifests.delete(self._directory / str(step))
            except OSError as error:
                logging.warning("Could not delete checkpoint %d: %s", step, error)


def load_params(
    path: str | os.PathLike[str],
    abstract_params: PyTree,
    step: int | None = None,
    *,
    defaults: PyTree | None = None,
) -> PyTree:
    """Parameters of another run, to start one from.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      abstract_params: tree of `jax.ShapeDtypeStruct` with the shardings wanted.
      step: which step; None takes the newest sound one.
      defaults: tree of arrays like `abstract_params`. With it, parameters that the
        checkpoint lacks or holds in another shape keep their default, and every
        difference is logged; without it they are an error.

    Raises:
      CheckpointError: no sound step there.
      MismatchError: the parameters differ; lists both sides.
    """
    wanted = stored_arrays.by_name({"params": abstract_params})

    def read(source: epath.Path) -> PyTree:
        stored = _params_on_disk(source)
        difference = stored_arrays.compare(wanted, stored)
        if difference and defaults is None:
            raise MismatchError(
                f"{source} does not fit the model "
                f"{difference.summary(stored_arrays.REMEDY)}"
            )
        if difference:
            logging.warning("Partial load of %s %s", source, difference.listing())
        loadable = {
            name: leaf
            for name, leaf in wanted.items()
            if name in stored
            and not stored_arrays.compare({name: leaf}, {name: stored[name]})
        }
        values = (
            dict(stored_arrays.by_name({"params": defaults}))
            if defaults is not None
            else {}
        )
        values.update(zip(loadable, stored_arrays.read(source, loadable), strict=True))
        return jax.tree.unflatten(
            jax.tree.structure(abstract_params), [values[name] for name in wanted]
        )

    return _read_step(path, step, read)


def _read_step(
    path: str | os.PathLike[str],
    step: int | None,
    read: Callable[[epath.Path], Any],
) -> Any:
    """What `read` makes of the newest sound step, or of `step`.

    If the run deletes the newest step while it is read, a newer one is there.

    Raises:
      GoneError: `step` is not there, or was deleted meanwhile.
      CheckpointError: no sound step there, or it cannot be read.
    """
    directory, step = locate(path, step)
    while True:
        choice = multihost.from_process_zero(
            "checkpoints/load", lambda: manifests.choose(directory, step), 1200.0
        )
        if choice["step"] is None:
            raise CheckpointError(f"{path}: no checkpoint there.")
        source = directory / str(choice["step"])
        try:
            with _explained(source):
                result = read(source)
                # What reads a file that is gone as zeros must not pass.
                if manifests.is_gone(source):
                    raise GoneError(f"{source} was deleted while it was read.")
            return result
        except GoneError as error:
            if step is not None or jax.process_count() > 1:
                raise
            logging.warning("%s Taking a newer step.", error)


@contextlib.contextmanager
def _explained(source: epath.Path) -> Iterator[None]:
    """Turns the errors of storage and of Orbax into those of this module.

    Raises:
      GoneError: the step was deleted meanwhile.
      CheckpointError: it cannot be read; says why in one line.
    """
    try:
        yield
    except (MismatchError, CheckpointError):
        if manifests.is_gone(source):
            raise GoneError(f"{source} was deleted while it was read.") from None
        raise
    except Exception as error:
        if manifests.is_gone(source):
            raise GoneError(f"{source} was deleted while it was read.") from error
        raise CheckpointError(
            f"{source} could not be read: {_reason(error)}."
        ) from error


def _params_on_disk(source: epath.Path) -> dict[str, Any]:
    return {
        name: array
        for name, array in stored_arrays.on_disk(source).items()
        if name.startswith("params/")
    }


def _remove_what_is_written(path: epath.Path) -> None:
    """Removes a folder to which threads that Orbax does not wait for may still write.

    What cannot be removed stays until the next start, which removes it.
    """
    for _ in range(_REMOVALS):
        try:
            return manifests.remove_tree(path)
        except OSError as error:  # A file came while the folder was emptied.
            problem = error
            time.sleep(0.1)
    logging.warning("%s could not be removed: %s.", path, problem.strerror)


def _reason(error: Exception) -> str:
    """First line of an error, without the places in the source that Orbax adds."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s*\[(source locations|[a-z_]+)=.*", "", lines[0]).rstrip(". ")


def read_numpy(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of one step by name, in host memory as stored; and its metadata.

    Raises:
      CheckpointError: the step is damaged or absent.
    """
    source = _absolute(path)
    if fault := manifests.problem(source):
        raise CheckpointError(f"Checkpoint {source} is damaged: {fault}.")
    stored = stored_arrays.on_disk(source)
    arrays = stored_arrays.read(source, stored, as_numpy=True)
    return dict(zip(stored, arrays, strict=True)), _read_metadata(source)


def read_params(
    path: str | os.PathLike[str], step: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any], epath.Path]:
    """Parameters of a run by name, in host memory; its metadata; the step's directory.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      step: which step; None takes the newest sound one.

    Raises:
      CheckpointError: no sound step there.
    """

    def read(source: epath.Path):
        stored = _params_on_disk(source)
        arrays = stored_arrays.read(source, stored, as_numpy=True)
        named = {
            name.removeprefix("params/"): array
            for name, array in zip(stored, arrays, strict=True)
        }
        return named, _read_metadata(source), source

    return _read_step(path, step, read)


def _drop_orbax_chatter(record: std_logging.LogRecord) -> bool:
    """A save makes Orbax log dozens of lines; only its warnings stay.

    Its tracebacks tell of errors that it raises as well.
    """
    if "/orbax/" not in record.pathname:
        return True
    return record.levelno >= std_logging.WARNING and not record.exc_info


class _DropTensorstoreChatter:
    """Hook for errors that cannot be raised: all but one go to the hook before it.

    When one array cannot be written Orbax raises that and closes its event loop. For
    each of the other arrays tensorstore then prints a traceback, as it finds the loop
    closed.
    """

    def __init__(self, before: Callable[["sys.UnraisableHookArgs"], Any]):
        self._before = before

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if (
            unraisable.object is not None
            or str(unraisable.exc_value) != "Event loop is closed"
        ):
            self._before(unraisable)


class _StepHandler(ocp.PyTreeCheckpointHandler):
    """Adds the metadata and the manifest to a step just before it is committed."""

    step = 0
    metadata_text = "{}"

    def finalize(self, directory: epath.Path) -> None:
        """Runs in the background, on process 0, after every process has written."""
        super().finalize(directory)
        (directory / _METADATA).write_text(self.metadata_text)
        manifests.write(directory, self.step)


@ocp.args.register_with_handler(_StepHandler, for_save=True, for_restore=True)
class _StepArgs(ocp.args.PyTreeSave):
    """Arguments of `_StepHandler`; Orbax looks handlers up by their class."""


def locate(
    path: str | os.PathLike[str], step: int | None = None
) -> tuple[epath.Path, int | None]:
    """Directory of steps and step meant by a model_dir, `checkpoints` or a step.

    Raises:
      CheckpointError: it is none of them.
    """
    place = _absolute(path)
    if place.name.isdigit() and (place / "_METADATA").exists():
        return place.parent, int(place.name)
    for directory in (place / "checkpoints", place):
        if manifests.step_numbers(directory):
            return directory, step
    raise CheckpointError(
        f"{path}: no checkpoint there. Give a model_dir, its checkpoints directory, "
        "or one step of it."
    )


def _read_metadata(path: epath.Path) -> dict[str, Any]:
    return json.loads((path / _METADATA).read_text())


def _absolute(path: str | os.PathLike[str]) -> epath.Path:
    return epath.Path(paths.local(path, "checkpoint")).absolute()


def _take_lock(directory: epath.Path) -> locks.Lock:
    """Makes the directory and holds DIRECTORY/.lock."""
    try:
        return locks.acquire(
            directory / ".lock",
            output=directory,
            advice="Stop that run, or choose another model_dir.",
        )
    except locks.LockedError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written to: {error.strerror}. Make room or give "
            "write permission, or choose another model_dir."
        ) from error
