"""What becomes of proteins longer than a limit; by name, never by accident."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

POLICIES = ("error", "skip", "chunk", "truncate")


def overlap(size: int, asked: int | None) -> int:
    """Residues that neighbours share: what is asked for, or a quarter of a piece.

    Raises:
      ValueError: Pieces of `size` cannot share so many.
    """
    if asked is None:
        return size // 4
    if not 0 <= asked < size:
        raise ValueError(
            f"chunk_overlap={asked} must be at least 0 and less than the pieces' "
            f"{size} residues."
        )
    return asked


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
    """One row per residue: from the piece in which its surroundings reach farthest.

    In an overlap the first half comes from the piece before, the second from the one
    behind.
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
