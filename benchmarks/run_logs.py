"""Reads the metric log of a training run."""

from collections.abc import Iterator
import json
import pathlib

_SPLIT = "validation/"


def lines(directory: pathlib.Path) -> Iterator[dict[str, float]]:
    """Scalars of each line of the metric log, in order."""
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def evaluation(entry: dict[str, float]) -> dict[str, float]:
    """Scalars of the validation split, without the prefix; empty for other lines."""
    return {
        key.removeprefix(_SPLIT): value
        for key, value in entry.items()
        if key.startswith(_SPLIT)
    }
