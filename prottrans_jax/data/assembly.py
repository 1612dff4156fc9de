"""From corrupted pieces to the arrays of a batch, with T5X's feature names."""

import jaxtyping
import numpy as np

from prottrans_jax.data import corruption

# Feature -> dtype, all [rows, length]. Segment 0 is padding, 1 .. the row's pieces.
FEATURES: dict[str, type] = {
    "encoder_input_tokens": np.int32,
    "encoder_segment_ids": np.int32,
    "encoder_positions": np.int32,
    "decoder_input_tokens": np.int32,
    "decoder_target_tokens": np.int32,
    "decoder_segment_ids": np.int32,
    "decoder_positions": np.int32,
    "decoder_loss_weights": np.float32,
    "decoder_corrupted": np.int32,
}


def assemble(
    pieces: corruption.Corrupted,
    splits: jaxtyping.Int64[np.ndarray, " rows_plus_1"],
    feature_lengths: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Lays pieces side by side into rows.

    The decoder's input is its targets one place later, from pad (0) at the start of
    each piece: no piece sees another's last token.

    Args:
      pieces: corrupted pieces in the order of their rows.
      splits: pieces of row i are splits[i] .. splits[i + 1] - 1.
      feature_lengths: tokens of a row (inputs, targets).

    Returns:
      `FEATURES`, each [rows, length].
    """
    rows = len(splits) - 1
    inputs_length, targets_length = feature_lengths
    piece_row = np.repeat(np.arange(rows), np.diff(splits))
    segment = np.arange(len(piece_row)) - splits[piece_row] + 1
    batch: dict[str, np.ndarray] = {
        name: np.zeros(
            (rows, inputs_length if name.startswith("encoder") else targets_length), d
        )
        for name, d in FEATURES.items()
    }

    at, position, segment_ids, _ = _places(
        pieces.input_lengths, piece_row, segment, splits, inputs_length
    )
    _put(batch["encoder_input_tokens"], at, pieces.inputs)
    _put(batch["encoder_segment_ids"], at, segment_ids)
    _put(batch["encoder_positions"], at, position)

    at, position, segment_ids, starts = _places(
        pieces.target_lengths, piece_row, segment, splits, targets_length
    )
    shifted = np.empty_like(pieces.targets)
    shifted[1:] = pieces.targets[:-1]
    shifted[starts] = 0
    _put(batch["decoder_input_tokens"], at, shifted)
    _put(batch["decoder_target_tokens"], at, pieces.targets)
    _put(batch["decoder_segment_ids"], at, segment_ids)
    _put(batch["decoder_positions"], at, position)
    _put(batch["decoder_loss_weights"], at, pieces.loss_weights)
    _put(batch["decoder_corrupted"], at, pieces.corrupted)
    return batch


def _put(feature: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
    feature.reshape(-1)[at] = values


def _places(
    lengths: np.ndarray,
    piece_row: np.ndarray,
    segment: np.ndarray,
    splits: np.ndarray,
    row_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each token: place in the flat feature, position, segment; starts of pieces."""
    starts = np.cumsum(lengths) - lengths
    # Tokens before each row's first piece; rows may be empty.
    before = np.append(starts, lengths.sum())[splits[:-1]]
    shift = piece_row * row_length - before[piece_row]
    token = np.arange(int(lengths.sum()), dtype=np.int32)
    at = token + np.repeat(shift, lengths)
    position = token - np.repeat(starts.astype(np.int32), lengths)
    return at, position, np.repeat(segment.astype(np.int32), lengths), starts


def merge(
    parts: list[corruption.Corrupted], order: list[np.ndarray]
) -> corruption.Corrupted:
    """Pieces of several objectives as one; order[p][i] is the i-th piece of part p."""
    place = np.argsort(np.concatenate(order), kind="stable")
    fields: dict[str, np.ndarray] = {}
    for lengths_name, names in (
        ("input_lengths", ("inputs",)),
        ("target_lengths", ("targets", "loss_weights", "corrupted")),
    ):
        lengths = np.concatenate([getattr(p, lengths_name) for p in parts])
        begins = (np.cumsum(lengths) - lengths)[place]
        lengths = lengths[place]
        at = np.arange(int(lengths.sum())) + np.repeat(
            begins - (np.cumsum(lengths) - lengths), lengths
        )
        fields[lengths_name] = lengths
        for name in names:
            fields[name] = np.concatenate([getattr(p, name) for p in parts])[at]
    return corruption.Corrupted(**fields)
