"""Nucleotides given for proteins: each base is also the letter of a residue.

Only the share of A, C, G, T, U and N tells them apart. Of 108,566 proteins (Swiss-Prot,
UniProtKB, UniRef90, BFD, E. coli) with 40 residues or more none has over 81 % of these
letters; an antifreeze peptide of 31 residues has nothing else.
"""

from collections.abc import Sequence

from absl import logging
from jaxtyping import Int
import numpy as np

from prottrans_jax.proteins import fasta

REASON = "nucleotides"
_BASES = b"ACGTUN"
_SHARE = 0.9
# Residues below which nothing is concluded: of a record among others, of a file.
_MIN_RECORD, _MIN_FILE = 60, 40


def warn_of(residues: Sequence[bytes]) -> bool:
    """Logs one warning if sequences given in Python are nucleotides altogether.

    Args:
      residues: Upper case. Fewer than 60 letters in all are not judged.

    Returns:
      Whether it was logged.
    """
    lengths, bases = _counts(residues)
    total, share = int(lengths.sum()), _SHARE * lengths.sum()
    if total < _MIN_RECORD or bases.sum() < share:
        return False
    logging.warning(
        "%.0f %% of the %s letters given are A, C, G, T, U or N: nucleotides? They are "
        "embedded as residues of proteins; translate them if they are not.",
        100 * bases.sum() / total,
        f"{total:,}",
    )
    return True


def _counts(
    residues: Sequence[bytes],
) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " records"]]:
    """Letters of each sequence, and how many of them are bases."""
    lengths = np.fromiter(map(len, residues), np.int64, len(residues))
    others = np.fromiter(
        (len(x.translate(None, _BASES)) for x in residues), np.int64, len(residues)
    )
    return lengths, lengths - others


class NucleotidesError(ValueError):
    """A whole file of nucleotides."""


def check(
    block: fasta.Block, parsed: fasta.Parsed, way_out: str
) -> tuple[fasta.Parsed, list[fasta.Problem]]:
    """Records of a block without those that are nucleotides, and these as problems.

    Args:
      block: The first one of a file decides whether the whole file is refused.
      parsed: Its records.
      way_out: What the caller's user can do if they are proteins, a sentence.

    Raises:
      NucleotidesError: The file is one of nucleotides: share, first record, way out.
    """
    lengths, bases = _counts(parsed.residues)
    suspect = bases >= _SHARE * lengths
    total = int(lengths.sum())
    if block.first and total >= _MIN_FILE and bases.sum() >= _SHARE * total:
        first = int(np.flatnonzero(suspect)[0])
        raise NucleotidesError(
            f"{block.path}: {bases.sum() / total:.0%} of {total:,} letters are A, C, "
            f"G, T, U or N: nucleotides, not proteins. The first such record is "
            f"{parsed.names[first].decode()!r} in line {parsed.lines[first]}. "
            f"{way_out}"
        )
    suspect &= lengths >= _MIN_RECORD
    if not suspect.any():
        return parsed, []
    problems = [
        fasta.Problem(
            block.path,
            parsed.lines[i],
            parsed.names[i].decode(),
            REASON,
            f"{bases[i] / lengths[i]:.0%} of the {lengths[i]:,} letters of record "
            f"{parsed.names[i].decode()!r} are A, C, G, T, U or N: nucleotides, not a "
            f"protein. {way_out}",
        )
        for i in np.flatnonzero(suspect).tolist()
    ]
    return parsed.only(~suspect), problems
