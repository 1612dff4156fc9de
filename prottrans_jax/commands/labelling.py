"""`prottrans labels`: what files of labelled proteins hold."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
import json

import numpy as np

from prottrans_jax import printable
from prottrans_jax.commands import console
from prottrans_jax.downstream import labelled, leaks, published_tasks
from prottrans_jax.downstream.readers import deriving, label_files, records
from prottrans_jax.files import paths
from prottrans_jax.proteins import plurals

_SHOWN = 10


def add_labels(commands) -> None:
    """Adds `prottrans labels`."""
    parser = console.add_command(
        commands,
        "labels",
        _labels,
        "describe files of labelled proteins: tasks, classes, splits, problems",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="labelled proteins, plain or compressed, or a folder of FLIP; several are "
        "read as one set, e.g. a file for each split",
    )
    parser.add_argument(
        "--format", choices=("auto", *label_files.FORMATS), default="auto"
    )
    parser.add_argument(
        "--task",
        choices=tuple(published_tasks.TASKS),
        help="published task; by default all whose labels are there, else the task is "
        "derived from the labels",
    )
    parser.add_argument(
        "--unknown",
        default="drop",
        metavar="RULE",
        help="proteins whose label names no class: drop, keep (without label), or the "
        "class that they get (default drop)",
    )
    parser.add_argument(
        "--mask",
        choices=tuple(label_files.MASK_RULES),
        default="resolved",
        help="residues that count (default resolved)",
    )
    parser.add_argument(
        "--classes",
        action="store_true",
        help="numbers of a derived task are names of classes",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _labels(arguments: argparse.Namespace) -> int:
    places = [paths.place(file, "FILE") for file in arguments.files]
    try:
        found = [label_files.contents(place, arguments.format) for place in places]
    except ValueError as error:
        return console.fail(3, str(error))
    merged = records.merged(found)
    names = [arguments.task] if arguments.task else deriving.published_in(merged)
    about = [_describe(merged, places, name, arguments) for name in names or [None]]
    if arguments.json:
        print(json.dumps({"tasks": about}, indent=1))
    else:
        for number, description in enumerate(about):
            if number:
                print()
            _print(description)
    return 3 if any(description["problems"] for description in about) else 0


def _describe(
    contents: records.Contents,
    places: Sequence[paths.Place],
    task: str | None,
    arguments: argparse.Namespace,
) -> dict[str, object]:
    problems: list[str] = []
    proteins = label_files.labels_of(
        contents,
        console.some([str(place) for place in places]),
        task,
        unknown=arguments.unknown,
        mask=arguments.mask,
        classes=arguments.classes or None,
        on_problem=problems.append,
    )
    problems += map(str, leaks.find(proteins))
    lengths = [len(protein.residues) for protein in proteins.proteins] or [0]
    return {
        "files": [str(place) for place in places],
        "task": proteins.task.name,
        "level": proteins.task.level,
        "source": proteins.task.source,
        "metric": proteins.task.metric,
        "proteins": len(proteins.proteins),
        "residues": sum(lengths),
        "lengths": {
            "shortest": min(lengths),
            "median": int(np.median(lengths)),
            "longest": max(lengths),
        },
        "splits": Counter(protein.split for protein in proteins.proteins),
        "labels that count": int(sum(p.counts.sum() for p in proteins.proteins)),
        **_values(proteins),
        "notes": list(proteins.notes),
        "problems": problems,
    }


def _values(proteins: labelled.LabelledSet) -> dict[str, object]:
    """Counts of the classes, or range of the numbers, of the labels that count."""
    counted = [protein.labels[protein.counts] for protein in proteins.proteins]
    values = np.concatenate([np.zeros(0), *(np.reshape(x, -1) for x in counted)])
    if not proteins.task.is_regression:
        classes = proteins.task.classes
        numbers = np.bincount(values.astype(np.int64), minlength=len(classes))
        return {"classes": dict(zip(classes, numbers.tolist(), strict=True))}
    if not values.size:
        return {"numbers": {}}
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return {"numbers": {"lowest": low, "median": middle, "highest": high}}


def _print(about: Mapping[str, object]) -> None:
    for key, value in about.items():
        if isinstance(value, list):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {_number(x)}" for name, x in value.items())
        print(printable.plain(f"{key:18} {_number(value)}"))
    for key in ("notes", "problems"):
        lines = about[key]
        assert isinstance(lines, list)
        for line in lines[:_SHOWN]:
            print(printable.plain(f"{key.removesuffix('s'):18} {line}"))
        if more := len(lines) - _SHOWN:
            if more > 0:
                print(f"{'':18} and {plurals.count(more, 'more such line')}")


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
