"""Predictions as text: TSV, JSON Lines and annotated FASTA, from probabilities in HDF5.

tsv     residues: id, position (from 1), residue, prediction, probabilities; proteins:
        id, prediction, probabilities
jsonl   an object for each protein: id, sequence, and for each task prediction and
        probabilities [residues][classes]
fasta   residues: header, sequence, a line of classes for each task; proteins: header
        with TASK=CLASS and its probability, sequence
h5      probabilities alone, a dataset for each protein
"""

from collections.abc import Iterable, Iterator, Sequence
import json
import pathlib
from typing import IO

from jaxtyping import Float
import numpy as np

from prottrans_jax.downstream import labelled
from prottrans_jax.embed import formats, inputs
from prottrans_jax.files import paths, writing

_SUFFIXES = {
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".fasta": "fasta",
    ".fa": "fasta",
    ".h5": "h5",
    ".hdf5": "h5",
}
FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
# Digits of a probability in text: more than a head is worth.
_DIGITS = 4
_Outputs = Float[np.ndarray, "*length outputs"]


def format_of(
    path: paths.Place, format: str | None, tasks: Sequence[labelled.Task]
) -> str:
    """The format of an output, by name or suffix.

    Raises:
      ValueError: The suffix is not known, or annotated FASTA cannot hold the tasks.
    """
    kind = format or _SUFFIXES.get(path.suffix.lower())
    if kind not in FORMATS:
        raise ValueError(
            f"output {path}: predictions are written as {', '.join(FORMATS)}; the "
            f"suffix {path.suffix!r} is none of {', '.join(_SUFFIXES)}. Give "
            "--format."
        )
    if (kind == "h5") != (_SUFFIXES.get(path.suffix.lower()) == "h5"):
        raise ValueError(f"output {path}: format {kind} and this suffix do not agree.")
    if kind == "fasta":
        for task in tasks:
            if task.level == "residue" and not _has_letters(task):
                raise ValueError(
                    f"output {path}: annotated FASTA has a letter for each residue, "
                    f"but {task.name} predicts {', '.join(task.classes) or 'numbers'}. "
                    "Choose tsv or jsonl."
                )
    return str(kind)


def _has_letters(task: labelled.Task) -> bool:
    return bool(task.classes) and all(len(name) == 1 for name in task.classes)


def write(
    kind: str,
    path: paths.Place,
    tasks: Sequence[labelled.Task],
    proteins: Iterable[inputs.Protein],
    probabilities: pathlib.Path,
) -> None:
    """Writes predictions as text; the file appears once it is complete.

    Args:
      kind: "tsv", "jsonl" or "fasta".
      path: The file.
      tasks: What the outputs predict.
      proteins: Proteins of the input in their order; those without outputs, which the
        job left out, are omitted.
      probabilities: HDF5 file of the outputs.
    """
    render = {"tsv": _tsv, "jsonl": _jsonl, "fasta": _fasta}[kind]
    with (
        formats.open_hdf5(probabilities) as file,
        writing.new_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as stream,
    ):
        if kind == "tsv":
            stream.write("\t".join(_columns(tasks)) + "\n")
        for protein in proteins:
            if protein.key in file:
                outputs = file[protein.key][()]
                residues = protein.residues.decode()
                render(stream, tasks, protein, residues, outputs)


def _parts(
    tasks: Sequence[labelled.Task], outputs: _Outputs
) -> Iterator[tuple[labelled.Task, _Outputs]]:
    """Each task with its outputs."""
    start = 0
    for task in tasks:
        yield task, outputs[..., start : start + task.num_outputs]
        start += task.num_outputs


def predictions(task: labelled.Task, outputs: _Outputs) -> list[str] | list[float]:
    """Name of the most probable class, or the number, for each position."""
    if task.is_regression:
        return [round(float(x), _DIGITS) for x in outputs[..., 0].ravel()]
    chosen = outputs.argmax(-1).ravel()
    return [task.classes[index] for index in chosen]


def _columns(tasks: Sequence[labelled.Task]) -> list[str]:
    names = ["id"]
    if tasks[0].level == "residue":
        names += ["position", "residue"]
    for task in tasks:
        prefix = f"{task.name}:" if len(tasks) > 1 else ""
        names.append(task.name if len(tasks) > 1 else "prediction")
        names += [f"{prefix}{name}" for name in task.classes]
    return names


def _cells(tasks: Sequence[labelled.Task], outputs: _Outputs) -> list[list[str]]:
    """Cells of the predictions, a row for each position."""
    rows = outputs.reshape(-1, outputs.shape[-1])
    cells: list[list[str]] = [[] for _ in rows]
    for task, part in _parts(tasks, rows):
        for own, name, values in zip(cells, predictions(task, part), part, strict=True):
            own.append(str(name))
            if task.classes:
                own += [f"{x:.{_DIGITS}f}" for x in values]
    return cells


def _tsv(
    stream: IO[str],
    tasks: Sequence[labelled.Task],
    protein: inputs.Protein,
    residues: str,
    outputs: _Outputs,
) -> None:
    cells = _cells(tasks, outputs)
    if tasks[0].level == "protein":
        stream.write("\t".join([protein.name, *cells[0]]) + "\n")
        return
    for position, (residue, own) in enumerate(zip(residues, cells, strict=False), 1):
        stream.write("\t".join([protein.name, str(position), residue, *own]) + "\n")


def _jsonl(
    stream: IO[str],
    tasks: Sequence[labelled.Task],
    protein: inputs.Protein,
    residues: str,
    outputs: _Outputs,
) -> None:
    content: dict = {"id": protein.name, "sequence": residues}
    for task, part in _parts(tasks, outputs):
        names = predictions(task, part)
        prediction: object = names
        if task.level == "protein":
            prediction = names[0]
        elif _has_letters(task):
            prediction = "".join(map(str, names))
        content[task.name] = prediction
        if task.classes:
            content[f"{task.name}_probabilities"] = np.round(
                part.astype(np.float64), _DIGITS
            ).tolist()
            content[f"{task.name}_classes"] = list(task.classes)
    stream.write(json.dumps(content) + "\n")


def _fasta(
    stream: IO[str],
    tasks: Sequence[labelled.Task],
    protein: inputs.Protein,
    residues: str,
    outputs: _Outputs,
) -> None:
    header = f">{protein.name} {protein.description}".rstrip()
    lines = [residues]
    for task, part in _parts(tasks, outputs):
        names = predictions(task, part)
        if task.level == "residue":
            lines.append("".join(map(str, names)))
        else:
            header += f" {task.name}={names[0]}"
            if task.classes:
                header += f" p={part.max():.{_DIGITS}f}"
    stream.write("\n".join([header, *lines]) + "\n")
