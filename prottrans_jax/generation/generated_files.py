"""Generated proteins as FASTA or JSON Lines, written atomically.

FASTA has a header such as

    >generated_1 log_likelihood=-57.31 sampled=20 ended=true model=M seed=0 ...

JSON Lines has the same as one object for each protein.
"""

from collections.abc import Iterable, Mapping
import json
import pathlib
from typing import Any

from prottrans_jax.files import folders, paths, writing
from prottrans_jax.generation import generator

SUFFIXES = {
    ".fasta": "fasta",
    ".fa": "fasta",
    ".faa": "fasta",
    ".jsonl": "jsonl",
}
# Residues in a line of FASTA.
_LINE = 60


def format_of(path: paths.Place) -> str:
    """Format of an output by its suffix: "fasta" or "jsonl".

    Raises:
      ValueError: The suffix is unknown.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"output {path}: the file extension selects the format, but "
            f"{path.suffix!r} is unknown. Choose one of {', '.join(SUFFIXES)}."
        )
    return SUFFIXES[path.suffix]


def check(path: paths.Place, *, overwrite: bool) -> None:
    """Raises if `write` would be refused.

    Raises:
      ValueError: The suffix is unknown.
      FileExistsError: The file exists, and `overwrite` is False.
    """
    format_of(path)
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder: name a file.")
    if not overwrite and folders.exists(path):
        raise FileExistsError(f"{path} exists: pass --overwrite or another --output.")


def write(
    path: paths.Place,
    proteins: Iterable[generator.Protein],
    settings: Mapping[str, Any],
) -> None:
    """Writes proteins to a file, which is replaced.

    Args:
      path: FASTA or JSON Lines, by its suffix.
      proteins: Proteins, whose names become `PROMPT_NUMBER`.
      settings: What the proteins were generated with; goes into every record.
    """
    to_text = {"fasta": _fasta, "jsonl": _json_line}[format_of(path)]
    with writing.new_file(path) as temporary:
        with pathlib.Path(temporary).open("w", encoding="utf-8", newline="\n") as file:
            for protein in proteins:
                file.write(to_text(protein, settings))


def _fasta(protein: generator.Protein, settings: Mapping[str, Any]) -> str:
    fields = {**_fields(protein), **settings}
    name = f"{protein.prompt}_{protein.number}"
    words = [f"{key}={_word(value)}" for key, value in fields.items()]
    sequence = protein.sequence
    lines = [sequence[i : i + _LINE] for i in range(0, len(sequence), _LINE)]
    return "\n".join([f">{name} {' '.join(words)}", *lines, ""])


def _json_line(protein: generator.Protein, settings: Mapping[str, Any]) -> str:
    record = {
        "id": f"{protein.prompt}_{protein.number}",
        "sequence": protein.sequence,
        "prompt": protein.prompt,
        **_fields(protein),
        "settings": dict(settings),
    }
    return json.dumps(record) + "\n"


def _fields(protein: generator.Protein) -> dict[str, Any]:
    return {
        # Six digits: about the precision of a float32 sum.
        "log_likelihood": float(f"{protein.log_likelihood:.6g}"),
        "sampled": protein.num_sampled,
        "ended": protein.ended,
    }


def _word(value: Any) -> str:
    """A value without white space, for a header."""
    if isinstance(value, bool):
        return str(value).lower()
    return "_".join(str(value).split())
