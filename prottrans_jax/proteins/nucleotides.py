"""Detects nucleotides in place of proteins: each base is also a letter of a residue.

They are recognised by the share of A, C, G, T, U and N. Of 108,566 proteins
(Swiss-Prot, UniProtKB, UniRef90, BFD, E. coli) with 40 residues or more, none has over
81 % of these letters; an antifreeze peptide of 31 residues has only these.
"""

from collections.abc import Sequence

from absl import logging
from jaxtyping import Int
import numpy as np

from prottrans_jax.proteins import fasta_blocks, fasta_problems

REASON = "nucleotides"
_BASES = b"ACGTUN"
_SHARE = 0.9
# Minimum of residues for a decision: about one record, about a file.
_MIN_RECORD, _MIN_FILE = 60, 40


def warn_of(residues: Sequence[bytes]) -> bool:
    """Logs a warning if the sequences, taken together, look like nucleotides.

    Args:
      residues: Upper case. With fewer than 60 letters in total there is no warning.

    Returns:
      Whether a warning was logged.
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
    """Number of letters, and number of bases, of each sequence."""
    lengths = np.fromiter(map(len, residues), np.int64, len(residues))
    others = np.fromiter(
        (len(x.translate(None, _BASES)) for x in residues), np.int64, len(residues)
    )
    return lengths, lengths - others


class NucleotidesError(ValueError):
    """The file holds nucleotides, not proteins."""


def check(
    block: fasta_blocks.Block, parsed: fasta_blocks.Parsed, way_out: str
) -> tuple[fasta_blocks.Parsed, list[fasta_problems.Problem]]:
    """Splits the records of a block into proteins, and nucleotides as problems.

    Args:
      block: The first block of a file decides whether the whole file is refused.
      parsed: Its records.
      way_out: Advice for the user if they are proteins, a sentence.

    Raises:
      NucleotidesError: The file holds nucleotides; gives share, first record, advice.
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
        fasta_problems.Problem(
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
