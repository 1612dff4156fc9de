"""Policies for proteins longer than --max-length, and cutting them into pieces."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

POLICIES = ("error", "skip", "chunk", "truncate")


def overlap(size: int, requested: int | None) -> int:
    """Residues shared by neighbouring pieces: `requested`, or a quarter of a piece.

    Raises:
      ValueError: `requested` is not less than `size`.
    """
    if requested is None:
        return size // 4
    if not 0 <= requested < size:
        raise ValueError(
            f"chunk_overlap={requested} must be at least 0 and less than the pieces' "
            f"{size} residues."
        )
    return requested


def cut(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Pieces [start, stop) of at most `size` that cover a protein.

    Neighbours share at least `overlap` residues, fewer than `size`; all pieces have the
    same size, so the last one may share more.
    """
    if length <= size:
        return [(0, length)]
    starts = list(range(0, length - size, size - overlap))
    return [(start, start + size) for start in [*starts, length - size]]


def stitch(
    pieces: Sequence[tuple[int, int]],
    hidden: Sequence[Float[np.ndarray, "*layers residues d_model"]],
) -> Float[np.ndarray, "*layers residues d_model"]:
    """Joins pieces to one row per residue, from the piece with the most context.

    The first half of an overlap comes from the earlier piece, the second half from the
    later one.
    """
    parts = []
    at = 0
    for index, ((start, stop), array) in enumerate(zip(pieces, hidden, strict=True)):
        if index + 1 < len(pieces):
            until = (pieces[index + 1][0] + stop + 1) // 2
        else:
            until = stop
        parts.append(array[..., at - start : until - start, :])
        at = until
    return np.concatenate(parts, axis=-2)
