"""SeqIO tasks and TFDS data sets as inputs of `prepare`."""

from collections.abc import Iterable, Iterator, Sequence
import importlib
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prottrans_jax.data.records import input_sources
from prottrans_jax.data.seqio import task_names
from prottrans_jax.files import paths


def of_task(name: str, modules: Sequence[str] = ()) -> list[input_sources.Source]:
    """The source of a task, split by split, before its preprocessors.

    Args:
      name: of a registered task whose source yields {"sequence"} or {"id", "sequence"}.
      modules: imported first, in addition to this package's own tasks.

    Raises:
      ValueError: there is no such task, or it yields other features.
    """
    for module in ("prottrans_jax.tasks", *modules):
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise ValueError(f"--task_module={module} cannot be imported: {e}.") from e
    names = sorted(seqio.TaskRegistry.names())
    if name not in names:
        raise ValueError(f"--task: {task_names.unknown(name, names)}")
    task = seqio.TaskRegistry.get(name)

    def read(split: str) -> Iterator[tuple[str, bytes]]:
        dataset = task.source.get_dataset(split=split, shuffle=False)
        return _pairs(f"{name}/{split}", dataset.as_numpy_iterator())

    return [input_sources.of_examples(f"{name}/{s}", read(s), s) for s in task.splits]


def of_tfds(name: str, data_dir: str | None = None) -> list[input_sources.Source]:
    """A TFDS data set that has been built, split by split.

    Args:
      name: its name, or name:version.
      data_dir: folder of TFDS data sets; None: TFDS's default.

    Raises:
      ValueError: there is no such data set, or `data_dir` is a URL.
    """
    if data_dir is not None:
        data_dir = str(paths.local(data_dir, "tfds_data_dir"))
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        splits = list(builder.info.splits)
        if not splits:
            raise ValueError(f"build it first: tfds build {name}")
    except Exception as e:  # TFDS raises many types for a missing data set.
        raise ValueError(
            f"TFDS data set {name!r} in {data_dir or 'the default folder'}: "
            f"{str(e).splitlines()[0] if str(e) else type(e).__name__}."
        ) from e

    def read(split: str) -> Iterator[tuple[str, bytes]]:
        return _pairs(f"{name}/{split}", tfds.as_numpy(builder.as_dataset(split=split)))

    return [input_sources.of_examples(f"{name}/{s}", read(s), s) for s in splits]


def _pairs(where: str, examples: Iterable[Any]) -> Iterator[tuple[str, bytes]]:
    for i, example in enumerate(_readable(where, examples)):
        if "sequence" not in example:
            raise ValueError(
                f"{where} yields {{{', '.join(sorted(example))}}}, not 'sequence' and "
                "'id'."
            )
        name = example.get("id")
        yield name.decode() if name is not None else f"{where}:{i}", example["sequence"]


def _readable(where: str, examples: Iterable[Any]) -> Iterator[Any]:
    count = 0
    try:
        for example in examples:
            yield example
            count += 1
    except (tf.errors.OpError, RuntimeError) as e:  # RuntimeError: array_record's.
        raise ValueError(
            f"{where} cannot be read after {count} examples: "
            f"{str(e).splitlines()[0] if str(e) else type(e).__name__}. Build or copy "
            "the data set again."
        ) from e
