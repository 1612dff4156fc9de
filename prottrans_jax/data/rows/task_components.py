"""A SeqIO task or mixture as components: records, corruption and rate of each task."""

import dataclasses
import fractions
import os

import seqio

from prottrans_jax.data.corruption import streams
from prottrans_jax.data.records import store
from prottrans_jax.data.seqio import preprocessors, record_source, task_names


@dataclasses.dataclass(frozen=True)
class Component:
    """One task of a run."""

    name: str
    split: store.RecordSplit
    corrupt: preprocessors.Corrupt
    rate: fractions.Fraction


def of_task(
    task: str | seqio.Task | seqio.Mixture,
    split: str,
    data_dir: str | os.PathLike | None,
    long_sequences: str,
) -> list[Component]:
    """The components of a task or mixture, with their records opened.

    Raises:
      ValueError: there is no such task, it has other sources or preprocessors than
        those of the library, or no records.
    """
    provider = _provider(task) if isinstance(task, str) else task
    components = []
    for part in seqio.get_subtasks(provider):
        corrupt = _corrupt_of(part, long_sequences)
        records = part.source.open(data_dir).split(split)
        rate = fractions.Fraction(1)
        if isinstance(provider, seqio.Mixture):
            # A rate may be a function of the number of records.
            with record_source.default_data_dir(data_dir):
                rate = fractions.Fraction(provider.get_rate(part))
            rate = rate.limit_denominator(10**6)
        if records.num_records == 0:
            raise ValueError(f"{records.folder}: split {split} has no records.")
        components.append(Component(part.name, records, corrupt, rate))
    return components


def layouts(components: list[Component]) -> tuple[streams.Layout, ...]:
    """Layouts of the rows that all components share.

    Raises:
      ValueError: the components have different features or vocabularies, or only
        some of them are in lanes.
    """
    first, *others = components
    corruption = first.corrupt.corruption
    for task in others:
        other = task.corrupt.corruption
        if (other.layouts, other.vocabulary) != (
            corruption.layouts,
            corruption.vocabulary,
        ):
            raise ValueError(
                f"tasks {first.name} ({corruption.vocabulary.name}) and {task.name} "
                f"({other.vocabulary.name}) are for models of different families: "
                "their rows have other features or ids. Mix tasks of one family."
            )
        if other.in_lanes != corruption.in_lanes:
            lanes_task, rows_task = sorted(
                (first, task), key=lambda t: not t.corrupt.corruption.in_lanes
            )
            raise ValueError(
                f"task {lanes_task.name} reads proteins in lanes, for memories, and "
                f"{rows_task.name} does not. Mix only tasks in lanes, or only tasks in "
                "rows."
            )
    return corruption.layouts


def _provider(name: str) -> seqio.Task | seqio.Mixture:
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in names:
        raise ValueError(task_names.unknown(name, names))
    return seqio.get_mixture_or_task(name)


def _corrupt_of(task: seqio.Task, long_sequences: str) -> preprocessors.Corrupt:
    """The corruption of a task; ValueError if other steps shape its rows too."""
    corrupt = task.preprocessors[-1] if task.preprocessors else None
    if not isinstance(task.source, record_source.RecordSource) or not isinstance(
        corrupt, preprocessors.Corrupt
    ):
        raise ValueError(
            f"task {task.name} is not made of prepared records and one of the "
            "library's corruptions, so its rows cannot be computed from lengths. "
            "Prepare its sequences with python -m prottrans_jax.prepare."
        )
    tokenize, *others = [
        step
        for step in task.preprocessors[:-1]
        if not isinstance(step, seqio.CacheDatasetPlaceholder)
    ] or [None]
    if others or not isinstance(tokenize, preprocessors.Tokenize):
        names = ", ".join(_step_name(step) for step in task.preprocessors)
        raise ValueError(
            f"task {task.name} has the preprocessors {names}. RowLoader computes rows "
            "from record lengths and runs only those of "
            "preprocessors.pretraining(...): Tokenize, CacheDatasetPlaceholder, "
            "Corrupt. Remove the others, e.g. by preparing the changed sequences."
        )
    if corrupt.long_sequences not in ("split", long_sequences):
        raise ValueError(
            f"task {task.name} has Corrupt(long_sequences={corrupt.long_sequences!r}), "
            f"but RowLoader has long_sequences={long_sequences!r} and follows its own. "
            f"Pass long_sequences={corrupt.long_sequences!r} to RowLoader too."
        )
    return corrupt


def _step_name(step: object) -> str:
    return getattr(step, "__name__", type(step).__name__)
