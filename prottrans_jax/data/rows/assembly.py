"""Assembles corrupted pieces into the arrays of a batch."""

from collections.abc import Mapping, Sequence
import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data.corruption import streams


@dataclasses.dataclass(frozen=True)
class Numbering:
    """Numbers of segments and positions that do not start with the row.

    Attributes:
      segment: number of each piece, 1 or more.
      position: position of the first token of each piece.
    """

    segment: streams.Lengths
    position: streams.Lengths


def feature_shapes(
    layouts: Sequence[streams.Layout], rows: int, row_lengths: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Shape of every feature of a batch."""
    return {
        name: (rows, length)
        for layout, length in zip(layouts, row_lengths, strict=True)
        for name in layout.features
    }


def assemble(
    corrupted: Sequence[streams.Stream],
    splits: jaxtyping.Int64[np.ndarray, " rows_plus_1"],
    row_lengths: Sequence[int],
    numbering: Numbering | None = None,
) -> dict[str, np.ndarray]:
    """Puts pieces one after another into rows.

    Args:
      corrupted: every stream of the corrupted pieces, in the order of their rows.
      splits: pieces of row i are splits[i] .. splits[i + 1] - 1.
      row_lengths: tokens of a row in each stream.
      numbering: numbers of segments and positions; None: from the start of each row.

    Returns:
      The features of all streams, each [rows, length].
    """
    rows = len(splits) - 1
    piece_row = np.repeat(np.arange(rows), np.diff(splits))
    segment = np.arange(len(piece_row)) - splits[piece_row] + 1
    if numbering is not None:
        segment = numbering.segment
    batch: dict[str, np.ndarray] = {}
    for stream, row_length in zip(corrupted, row_lengths, strict=True):
        features = {
            name: np.full((rows, row_length), field.fill, field.dtype)
            for name, field in stream.layout.features.items()
        }
        at, position = _places(stream.lengths, piece_row, splits, row_length)
        if numbering is not None:
            position += np.repeat(numbering.position, stream.lengths)
        values_by_name: Mapping[str, np.ndarray] = {
            **stream.values,
            "segment_ids": np.repeat(segment, stream.lengths),
            "positions": position,
        }
        for name, values in values_by_name.items():
            features[stream.layout.prefix + name].reshape(-1)[at] = values
        batch |= features
    return batch


def _places(
    lengths: np.ndarray, piece_row: np.ndarray, splits: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Index in the flat feature, and position in its piece, of each token."""
    starts = np.cumsum(lengths) - lengths
    # Tokens before each row's first piece; rows may be empty.
    before = np.append(starts, lengths.sum())[splits[:-1]]
    shift = piece_row * row_length - before[piece_row]
    token = np.arange(int(lengths.sum()))
    return token + np.repeat(shift, lengths), token - np.repeat(starts, lengths)
