"""Checks and cleans sequences that are passed in Python.

`vocabulary.clean` holds the rules, which are those of FASTA. Errors name the position.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
import re
from typing import Any

from prottrans_jax.proteins import vocabulary

# "proteins.fasta" would pass as a protein, because "." is a gap.
_FILE_NAME = re.compile(
    r"\.(fasta|fas|faa|fa|fna|a[23]m|sto|txt|csv|tsv|h5|json)(\.(gz|bz2|xz|zst|zip))?$",
    re.IGNORECASE,
)
_MISSING = ("NoneType", "NAType", "NaTType")


def in_order(sequences: Iterable[str]) -> Iterator[Any]:
    """The elements of a list, generator, array or Series, unchecked.

    Raises:
      ValueError: Another type; the message names what to pass instead.
    """
    kind = type(sequences).__name__
    advice = ""
    if isinstance(sequences, Mapping):
        advice = "For a dict pass list(proteins.values())."
    elif isinstance(sequences, Set):
        advice = "A set has no order: pass a list."
    elif hasattr(sequences, "columns"):
        advice = "Pass the column with the sequences."
    elif isinstance(sequences, str | bytes | bytearray):
        advice = "Pass [sequence], as str."
    if not advice:
        try:
            return iter(sequences)
        except TypeError:
            pass
    raise ValueError(
        f"A sequence (str) or a list of sequences is required, not {_shown(sequences)} "
        f"of type {kind}. {advice}".rstrip()
    )


def pairs(proteins: Iterable[tuple[str, str]]) -> Iterator[tuple[Any, Any]]:
    """(id, sequence) pairs.

    Raises:
      ValueError: An element is not a pair; the message names its position.
    """
    if isinstance(proteins, str | bytes | Mapping):
        raise ValueError(
            f"stream takes (id, sequence) pairs, not a {type(proteins).__name__}"
            f"{': pass its items()' if isinstance(proteins, Mapping) else ''}."
        )
    if not isinstance(proteins, Iterable):
        raise ValueError(
            f"stream takes (id, sequence) pairs, not {_shown(proteins)} of type "
            f"{type(proteins).__name__}."
        )
    for number, pair in enumerate(proteins):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"protein {number} is {_shown(pair)} of type {type(pair).__name__}, "
                "not an (id, sequence) pair."
            )
        yield pair[0], pair[1]


def residues_of(what: str, sequence: object) -> bytes:
    """Upper-case residues of a sequence.

    Args:
      what: Name of the sequence in errors, with its position.
      sequence: A str or numpy str.

    Raises:
      ValueError: Not a str, no residues, or a character that is not a residue.
    """
    if not isinstance(sequence, str):
        raise ValueError(
            f"{what} is {_shown(sequence)} of type {type(sequence).__name__}, not a "
            f"str. {_advice(sequence)}".rstrip()
        )
    # One byte per character, so that positions agree with the str.
    text = sequence.encode("latin-1", errors="replace")
    residues = vocabulary.clean(text).residues
    if _FILE_NAME.search(sequence):
        raise ValueError(
            f"{what} is {_shown(sequence)}, which looks like the name of a file: "
            "embed_fasta reads files."
        )
    if not residues:
        raise ValueError(f"{what} is {_shown(sequence)}: it has no residues.")
    if not residues.isalpha():
        raise ValueError(f"{what}: {_first_odd(sequence, text)}")
    return residues


def _first_odd(sequence: str, text: bytes) -> str:
    around = vocabulary.WHITE_SPACE + vocabulary.GAPS
    # Stops from here on are final ones.
    end = len(text.rstrip(around + vocabulary.STOP))
    for at, byte in enumerate(text):
        char = bytes([byte])
        if char.isalpha() or char in around:
            continue
        if char == vocabulary.STOP and at >= end:
            continue
        what = (
            "a stop inside the sequence" if char == vocabulary.STOP else "not a residue"
        )
        advice = " Is this FASTA? embed_fasta reads files." if char == b">" else ""
        return (
            f"{sequence[at]!r} at position {at} (0-based) of {len(text):,} characters "
            f"is {what}. Letters in either case are residues; white space, gaps and a "
            f"final '*' are removed.{advice}"
        )
    raise AssertionError(sequence)


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())  # The repr of a table has several lines.
    return text if len(text) <= 40 else f"{text[:37]}..."


def _advice(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return "Decode it: sequence.decode()."
    if type(value).__name__ in _MISSING or (
        isinstance(value, float) and value != value
    ):
        return "Remove missing values; for a Series pass series.dropna()."
    if hasattr(value, "seq"):
        return "Pass str(record.seq)."
    if isinstance(value, tuple) and len(value) == 2:
        return "stream takes (id, sequence) pairs."
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return "Join letters: ''.join(sequence)."
    if hasattr(value, "__getitem__"):
        return "Pass str(sequence)."
    return ""
