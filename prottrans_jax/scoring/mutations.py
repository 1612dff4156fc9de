"""Mutations as biologists write them: A1C, several joined by a colon, A1C:D2E."""

from collections.abc import Iterator, Sequence
import re
from typing import NamedTuple

from prottrans_jax.proteins import vocabulary

_MUTATION = re.compile(r"([A-Za-z*])(-?\d+)([A-Za-z*-]+)")
_SHOWN = 60


class Mutation(NamedTuple):
    """One substitution.

    Attributes:
      wild_type: Letter of the wild type.
      position: Position in the protein, from 1.
      mutant: Letter of the variant, one of the 20 amino acids.
    """

    wild_type: str
    position: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild_type}{self.position}{self.mutant}"


def parse(text: str, residues: bytes, where: str) -> tuple[Mutation, ...]:
    """The mutations of a variant, checked against the wild type.

    Args:
      text: For example "A1C" or "A1C:D2E".
      residues: The wild type, upper case.
      where: Place of the text in messages, such as FILE:LINE.

    Raises:
      ValueError: The text is not a list of substitutions, or does not fit the wild
        type; says what stands there.
    """
    parsed = tuple(_parse_one(x, residues, where) for x in text.strip().split(":"))
    positions = [x.position for x in parsed]
    for position in positions:
        if positions.count(position) > 1:
            raise ValueError(
                f"{where}: {_short(text)} changes position {position} more than once."
            )
    return parsed


def _parse_one(text: str, residues: bytes, where: str) -> Mutation:
    match = _MUTATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{where}: {_short(text)!r} is not a substitution, which is written as "
            "wild type, position from 1, mutant: A1C; several are joined: A1C:D2E."
        )
    wild_type, position, mutant = match[1].upper(), int(match[2]), match[3].upper()
    if not 1 <= position <= len(residues):
        raise ValueError(
            f"{where}: {text.strip()}: position {position} is outside the protein, "
            f"which has positions 1 to {len(residues)}."
        )
    if mutant not in vocabulary.STANDARD or len(mutant) != 1:
        raise ValueError(
            f"{where}: {text.strip()}: {_short(mutant)!r} is not one of the 20 amino "
            f"acids {vocabulary.STANDARD}."
        )
    actual = chr(residues[position - 1])
    if actual != wild_type:
        around = residues[max(position - 6, 0) : position + 5].decode()
        raise ValueError(
            f"{where}: {text.strip()}: position {position} of the protein is {actual}, "
            f"not {wild_type} (positions {max(position - 5, 1)} to "
            f"{min(position + 5, len(residues))}: {around})."
        )
    mutation = Mutation(wild_type, position, mutant)
    try:
        refuse_unknown_wild_type([mutation])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return mutation


def refuse_unknown_wild_type(several: Sequence[Mutation]) -> None:
    """Raises ValueError if a wild type is not one of the 20 amino acids."""
    for mutation in several:
        if mutation.wild_type not in vocabulary.STANDARD:
            raise ValueError(
                f"{mutation}: {mutation.wild_type} is none of the 20 amino acids; it "
                "has no probability to compare with."
            )


def apply(several: Sequence[Mutation], residues: bytes) -> bytes:
    """The variant's residues."""
    changed = bytearray(residues)
    for mutation in several:
        changed[mutation.position - 1] = ord(mutation.mutant)
    return bytes(changed)


def all_single(residues: bytes) -> list[Mutation]:
    """All 19 substitutions of each residue that is one of the 20 amino acids."""
    return list(_all_single(residues))


def _all_single(residues: bytes) -> Iterator[Mutation]:
    for index, letter in enumerate(residues.decode()):
        if letter in vocabulary.STANDARD:
            for mutant in vocabulary.STANDARD:
                if mutant != letter:
                    yield Mutation(letter, index + 1, mutant)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
