"""Checks that the folders of a run exist, before heavy imports.

Their content is checked later by the modules that read it.
"""

from collections.abc import Iterator
import os
from typing import Any

from prottrans_jax.config import reading
from prottrans_jax.data.records import corpora
from prottrans_jax.data.seqio import task_names
from prottrans_jax.files import buckets, folders, paths


def check_training(config: reading.Config) -> None:
    """Creates model_dir; raises if it is not writable or an input does not exist.

    Raises:
      UsageError: One line for each folder that cannot be used.
    """
    _check(config, writes=True)


def check_evaluation(config: reading.Config) -> None:
    """Like `check_training`, but model_dir must exist and need not be writable."""
    _check(config, writes=False)


def _check(config: reading.Config, writes: bool) -> None:
    problems = []
    starts_anew = True
    for name, value in _places(config, "model_dir"):
        try:
            folder = paths.place(value, name)
        except ValueError as error:
            problems.append(str(error))
            continue
        try:
            starts_anew = not (folder / "checkpoints").is_dir()
            problem = _not_writable(folder) if writes else _no_folder(folder)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            problems.append(f"{name}={value!r} cannot be used: {problem}.")
    problems += _data_problems(config)
    if writes and starts_anew:  # A resumed run ignores its sources.
        for parameter in ("init_from", "continue_from"):
            for name, value in _places(config, parameter):
                problems += _missing_source(name, value)
    if problems:
        raise reading.UsageError("\n".join(dict.fromkeys(problems)))
    if writes:
        _create(config)


def _create(config: reading.Config) -> None:
    """Creates model_dir, which may fail for reasons that no earlier check detects."""
    for name, value in _places(config, "model_dir"):
        try:
            paths.place(value, name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise reading.UsageError(
                f"{name}={value!r} cannot be created: {error.strerror}."
            ) from error


def _data_problems(config: reading.Config) -> list[str]:
    """Lines for missing data folders, and for corpora missing in them."""
    problems = []
    for name, value in _places(config, "data_dir"):
        problems += _missing(
            name, value, "Make it with: python -m prottrans_jax.prepare"
        )
    if problems:
        return problems
    for scope, selector, parameter in config.bindings:
        if parameter != "task":
            continue
        loader = config.parameters(reading.Reference(scope, selector, call=True))
        if loader["task"] not in task_names.NAMES:
            continue
        try:
            corpora.find(
                task_names.corpus(loader["task"]), loader.get("data_dir") or None
            )
        except ValueError as error:
            problems.append(str(error))
        except OSError as error:  # Of a bucket.
            problems.append(paths.explain(error))
    return problems


def _places(config: reading.Config, parameter: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each setting that is bound to `parameter`."""
    for (_, _, name), value in config.bindings.items():
        setting = value.name if isinstance(value, reading.Macro) else name
        value = config.value(value)
        if name == parameter and isinstance(value, str):
            yield setting, value


def _missing(name: str, value: str, way_out: str) -> list[str]:
    try:
        problem = _no_folder(paths.place(value, name))
    except ValueError as error:
        return [str(error)]
    except OSError as error:  # Of a bucket.
        problem = paths.explain(error)
    return [f"{name}={value!r}: {problem}. {way_out}."] if problem else []


def _missing_source(name: str, value: str) -> list[str]:
    kind, colon, rest = value.partition(":")
    if not (colon and kind in paths.SOURCE_KINDS):
        kind, rest = "", value
    problems = []
    for place in rest.split(","):
        if kind == "hf" and paths.is_hub_name(place):
            continue
        try:
            # Of other libraries' formats some are one file.
            if not paths.place(place, name).exists():
                problems.append(
                    f"{name}={value!r}: there is no {place}. Give the folder of a run "
                    "or a checkpoint, or hf:, t5x: or mtf: and a folder."
                )
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return problems


def _no_folder(folder: paths.Place) -> str:
    if not folder.exists():
        return "there is no such folder"
    return "" if folder.is_dir() else "it is not a folder"


def _not_writable(folder: paths.Place) -> str:
    """Why a folder cannot be created or written to; "" if it can.

    In a bucket only reading is tried; the run's lock is the first write.
    """
    if buckets.is_bucket(folder):
        folders.children(folder)
        return ""
    nearest = folder
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable"
    return ""
