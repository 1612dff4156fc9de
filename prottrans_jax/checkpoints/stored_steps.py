"""Steps of a run on disk: found, and read for another run or a frozen encoder.

The newest step whose files match its manifest is read, or the step that is named.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
import os
import re
from typing import Any

from absl import logging
from etils import epath
import jax
from jaxtyping import PyTree
import numpy as np

from prottrans_jax.checkpoints import manifests, stored_arrays
from prottrans_jax.distributed import barriers
from prottrans_jax.files import json_text, paths

METADATA = "metadata.json"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A step that was read, with its state.

    Attributes:
      step: the restored step.
      state: tree like the abstract state, with its shardings and dtypes.
      metadata: the JSON saved with the step.
      lost_steps: newest damaged step minus the restored one; 0 if no step is damaged.
    """

    step: int
    state: PyTree
    metadata: dict[str, Any]
    lost_steps: int = 0


def load_params(
    path: str | os.PathLike[str],
    abstract_params: PyTree,
    step: int | None = None,
    *,
    defaults: PyTree | None = None,
) -> PyTree:
    """Reads the initial parameters of a run from a checkpoint of another run.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      abstract_params: tree of `jax.ShapeDtypeStruct` with the final shardings.
      step: which step; None takes the newest sound one.
      defaults: tree of arrays like `abstract_params`. They replace parameters that are
        missing from the checkpoint or have another shape there; every difference is
        logged. Without defaults a difference is an error.

    Raises:
      manifests.CheckpointError: `path` has no sound step.
      stored_arrays.MismatchError: the parameters differ; lists both sides.
    """
    abstract_arrays = stored_arrays.by_name({"params": abstract_params})

    def read(source: epath.Path) -> PyTree:
        stored = _on_disk(source, "params/")
        difference = stored_arrays.compare(abstract_arrays, stored)
        if difference and defaults is None:
            raise stored_arrays.MismatchError(
                f"{source} does not fit the model "
                f"{difference.summary(stored_arrays.remedy(abstract_arrays, stored))}"
            )
        if difference:
            logging.warning("Partial load of %s %s", source, difference.listing())
        loadable = {
            name: leaf
            for name, leaf in abstract_arrays.items()
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
            jax.tree.structure(abstract_params),
            [values[name] for name in abstract_arrays],
        )

    return _read_step(path, step, read)


def load_state(
    path: str | os.PathLike[str], abstract_parts: Mapping[str, PyTree]
) -> Restored:
    """Reads parts of the state of another run, to go on from it.

    Unlike `Checkpointer.restore`, it does not fall back to an earlier step.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      abstract_parts: names of parts of a saved state -> trees of
        `jax.ShapeDtypeStruct` with the final shardings. Other parts are not read.

    Returns:
      The newest step; its state is a dictionary of the parts.

    Raises:
      manifests.CheckpointError: `path` has no step, or its newest one is damaged.
      stored_arrays.MismatchError: the arrays differ; lists both sides, and holds the
        metadata.
    """
    abstract_arrays = stored_arrays.by_name(abstract_parts)

    def read(source: epath.Path) -> Restored:
        stored = {
            name: array
            for name, array in stored_arrays.on_disk(source).items()
            if name.split("/")[0] in abstract_parts
        }
        metadata = read_metadata(source)
        if difference := stored_arrays.compare(abstract_arrays, stored):
            raise stored_arrays.MismatchError(
                f"{source} does not fit this run "
                f"{difference.summary(stored_arrays.remedy(abstract_arrays, stored))}",
                metadata,
            )
        arrays = stored_arrays.read(source, abstract_arrays)
        state = jax.tree.unflatten(jax.tree.structure(abstract_parts), arrays)
        return Restored(int(source.name), state, metadata)

    return _read_step(path, None, read, max_lost_steps=0)


def _read_step(
    path: str | os.PathLike[str],
    step: int | None,
    read: Callable[[epath.Path], Any],
    *,
    max_lost_steps: float = math.inf,
) -> Any:
    """Result of `read` for the newest sound step, or for `step`.

    If the run deletes the newest step during the read, a newer one is read instead.
    `max_lost_steps` is that of `manifests.choose`.

    Raises:
      manifests.GoneError: `step` does not exist, or was deleted meanwhile.
      manifests.CheckpointError: `path` has no sound step, or it cannot be read.
    """
    directory, step = locate(path, step)
    while True:
        choice = barriers.from_process_zero(
            "checkpoints/load",
            lambda: manifests.choose(directory, step, max_lost_steps=max_lost_steps),
            1200.0,
        )
        if choice["step"] is None:
            raise manifests.CheckpointError(f"{path}: no checkpoint there.")
        source = directory / str(choice["step"])
        try:
            with explained(source):
                result = read(source)
                # A reader may return zeros for a file that was deleted.
                if manifests.is_gone(source):
                    raise manifests.GoneError(
                        f"{source} was deleted while it was read."
                    )
            return result
        except manifests.GoneError as error:
            if step is not None or jax.process_count() > 1:
                raise
            logging.warning("%s Taking a newer step.", error)


@contextlib.contextmanager
def explained(source: epath.Path) -> Iterator[None]:
    """Converts errors of storage and of Orbax into CheckpointError or GoneError.

    Raises:
      manifests.GoneError: the step was deleted meanwhile.
      manifests.CheckpointError: the step cannot be read; gives the reason in one line.
    """
    try:
        yield
    except (stored_arrays.MismatchError, manifests.CheckpointError):
        if manifests.is_gone(source):
            raise manifests.GoneError(
                f"{source} was deleted while it was read."
            ) from None
        raise
    except Exception as error:
        if manifests.is_gone(source):
            raise manifests.GoneError(
                f"{source} was deleted while it was read."
            ) from error
        raise manifests.CheckpointError(
            f"{source} could not be read: {reason(error)}."
        ) from error


def _on_disk(source: epath.Path, prefix: str) -> dict[str, Any]:
    return {
        name: array
        for name, array in stored_arrays.on_disk(source).items()
        if name.startswith(prefix)
    }


def read_params(
    path: str | os.PathLike[str], step: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any], epath.Path]:
    """Parameters of a run by name, in host memory; its metadata; the step's directory.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      step: which step; None takes the newest sound one.

    Raises:
      manifests.CheckpointError: `path` has no sound step.
    """

    return read_arrays(path, "params/", step)


def read_arrays(
    path: str | os.PathLike[str], prefix: str, step: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any], epath.Path]:
    """As `read_params`, for the arrays whose names start with `prefix`.

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      prefix: e.g. "params/"; left out of the names that are returned.
      step: which step; None takes the newest sound one.

    Raises:
      manifests.CheckpointError: `path` has no sound step.
    """

    def read(source: epath.Path):
        stored = _on_disk(source, prefix)
        arrays = stored_arrays.read(source, stored, as_numpy=True)
        named = {
            name.removeprefix(prefix): array
            for name, array in zip(stored, arrays, strict=True)
        }
        return named, read_metadata(source), source

    return _read_step(path, step, read)


def locate(
    path: str | os.PathLike[str], step: int | None = None
) -> tuple[epath.Path, int | None]:
    """Directory of steps, and the step that `path` or `step` selects (None: newest).

    Args:
      path: a model_dir, its `checkpoints` directory, or one step of it.
      step: which step, unless `path` is a step.

    Raises:
      manifests.CheckpointError: `path` is none of these.
    """
    place = absolute(path)
    if place.name.isdigit() and (place / "_METADATA").exists():
        return place.parent, int(place.name)
    for directory in (place / "checkpoints", place):
        if manifests.step_numbers(directory):
            return directory, step
    raise manifests.CheckpointError(
        f"{path}: no checkpoint there. Give a model_dir, its checkpoints directory, "
        "or one step of it."
    )


def read_metadata(path: epath.Path) -> dict[str, Any]:
    """The JSON saved with a step."""
    return json_text.parse((path / METADATA).read_text())


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Absolute path of a directory of checkpoints, which may be in a bucket."""
    return epath.Path(paths.absolute(paths.place(path, "checkpoint")))


def reason(error: Exception) -> str:
    """First line of an error, without the source locations that Orbax adds."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s*\[(source locations|[a-z_]+)=.*", "", lines[0]).rstrip(". ")
