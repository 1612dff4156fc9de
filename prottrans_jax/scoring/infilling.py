"""Fills unknown residues of a protein with the most probable amino acids.

An unknown residue is X, `?`, `_` or `<mask>`. "masked" and "permutation" hide all of a
protein at the same time, and predict each from the known residues. The other
likelihoods fill them one by one from left to right: each is predicted with the earlier
ones as filled. For "denoising" the later ones are hidden, "spans" reads them as X, and
"left-to-right" sees nothing after the residue.
"""

from collections.abc import Iterable, Iterator, Sequence
import os
import pathlib
from typing import NamedTuple

import numpy as np

from prottrans_jax.embed import sequence_input
from prottrans_jax.files import folders
from prottrans_jax.proteins import unpacking
from prottrans_jax.scoring import likelihoods, scorers

MARKS = ("?", "_", "<mask>")
_UNKNOWN = ord("X")


class Filled(NamedTuple):
    """An unknown residue and what it may be.

    Attributes:
      position: Position in the protein, from 1.
      residues: The most probable amino acids, the best one first.
      probabilities: Their probabilities, of a softmax over the whole vocabulary.
    """

    position: int
    residues: str
    probabilities: tuple[float, ...]


def fill(
    scorer: scorers.Scorer, sequences: Iterable[str], top: int = 1
) -> list[list[Filled]]:
    """The most probable amino acids for the unknown residues of each protein.

    Args:
      scorer: With a likelihood that predicts residues.
      sequences: Proteins with any number of X, `?`, `_` or `<mask>`.
      top: How many amino acids to return for each, 1 to 20.

    Raises:
      ValueError: `top` is out of range, or the likelihood predicts no residues.
    """
    if not 1 <= top <= len(scorers.LETTERS):
        raise ValueError(f"top={top}: it must be 1 to {len(scorers.LETTERS)}.")
    if isinstance(scorer.likelihood, likelihoods.Replaced):
        raise ValueError(
            f"{scorer.model.name} is a discriminator, which does not predict residues. "
            "Take its generator."
        )
    proteins = [
        bytearray(sequence_input.residues_of(f"sequence {number}", unmarked(text)))
        for number, text in enumerate(sequence_input.in_order(sequences))
    ]
    for number, residues in enumerate(proteins):
        scorer.check_length(f"sequence {number}", residues)
    unknown = [[i for i, x in enumerate(p) if x == _UNKNOWN] for p in proteins]
    if isinstance(scorer.likelihood, likelihoods.Masked | likelihoods.Permutation):
        if not scorer.likelihood.is_causal:
            return _at_once(scorer, proteins, unknown, top)
    return _from_left(scorer, proteins, unknown, top)


def _at_once(scorer, proteins, unknown, top) -> list[list[Filled]]:
    filled: list[list[Filled]] = [[] for _ in proteins]
    for chosen, items in _by_size(proteins, unknown):
        for number, rows in zip(chosen, scorer.masked(items), strict=True):
            filled[number] = [
                _best(index, row, top)
                for index, row in zip(unknown[number], rows, strict=False)
            ]
    return filled


def _from_left(scorer, proteins, unknown, top) -> list[list[Filled]]:
    filled: list[list[Filled]] = [[] for _ in proteins]
    hides_later = isinstance(scorer.likelihood, likelihoods.Denoising)
    for step in range(max(map(len, unknown), default=0)):
        hidden = [x[step : None if hides_later else step + 1] for x in unknown]
        for chosen, items in _by_size(proteins, hidden):
            for number, rows in zip(chosen, scorer.masked(items), strict=True):
                best = _best(unknown[number][step], rows[0], top)
                filled[number].append(best)
                proteins[number][best.position - 1] = ord(best.residues[0])
    return filled


def _by_size(
    proteins: Sequence[bytearray], hidden: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], list[scorers.Masks]]]:
    """Proteins with about as many hidden residues, as items of `Scorer.masked`."""
    groups: dict[int, list[int]] = {}
    for number, indices in enumerate(hidden):
        if indices:
            # The next power of two: few programs are compiled.
            groups.setdefault(1 << (len(indices) - 1).bit_length(), []).append(number)
    for size, chosen in groups.items():
        yield (
            chosen,
            [
                # Equal indices are the same mask.
                scorers.Masks(
                    bytes(proteins[n]),
                    (*hidden[n], *[hidden[n][-1]] * (size - len(hidden[n]))),
                )
                for n in chosen
            ],
        )


def _best(index: int, row: np.ndarray, top: int) -> Filled:
    order = np.argsort(-row, kind="stable")[:top]
    letters = "".join(scorers.LETTERS[i] for i in order)
    return Filled(index + 1, letters, tuple(np.exp(row[order]).tolist()))


def unmarked(text: str) -> str:
    """A sequence with X for every mark; anything but a str is returned as it is."""
    if isinstance(text, str):
        for mark in MARKS:
            text = text.replace(mark, "X")
    return text


def unmarked_copy(source: str | os.PathLike, folder: pathlib.Path) -> pathlib.Path:
    """A plain copy of a FASTA file with X for every mark; headers stay."""
    path = folder / pathlib.PurePath(str(source)).name
    stream = folders.opened(os.fspath(source)) or open(source, "rb")
    with stream, open(path, "wb") as file:
        rest, is_fasta = b"", False
        for chunk in (*unpacking.unpacked(stream, None), b"\n"):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                is_fasta = is_fasta or line.startswith(b">")
                if is_fasta and not line.startswith(b">"):
                    line = unmarked(line.decode("latin-1")).encode("latin-1")
                file.write(line + b"\n")
    return path
