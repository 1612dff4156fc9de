"""Adds BERT's special tokens: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""

import dataclasses

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.data.corruption import streams
from prottrans_jax.proteins import vocabulary as vocabulary_lib

# Random streams of a piece's key; `masking` uses other numbers.
_CUT, _SWAP = 100, 101


@dataclasses.dataclass(frozen=True)
class Framed:
    """Concatenated pieces with their special tokens.

    Attributes:
      tokens: ids, [tokens] uint8.
      lengths: tokens of each piece.
      places: index in `tokens` of each residue, in the order of the input.
      parts: number of residues of each part: A and B of each piece in turn.
      token_types: 1 for the second part and its [SEP], else 0, [tokens].
      order_targets: 1 at the [CLS] of a piece whose parts are swapped, [tokens].
      order_weights: 1 at the [CLS] of a piece that has two parts, [tokens].
    """

    tokens: np.ndarray
    lengths: streams.Lengths
    places: jaxtyping.Int64[np.ndarray, " residues"]
    parts: jaxtyping.Int64[np.ndarray, " parts"]
    token_types: np.ndarray
    order_targets: np.ndarray
    order_weights: np.ndarray


def num_tokens(
    lengths: jaxtyping.Integer[np.ndarray, " pieces"], pairs: bool
) -> streams.Lengths:
    """Tokens of each piece: its residues and 2 special tokens, or 3 for a pair."""
    lengths = np.asarray(lengths, np.int64)
    return lengths + 2 + (lengths >= 2) * pairs


def frame(
    residues: jaxtyping.UInt8[np.ndarray, " residues"],
    lengths: streams.Lengths,
    keys: jaxtyping.UInt64[np.ndarray, " pieces"],
    vocabulary: vocabulary_lib.Vocabulary,
    *,
    pairs: bool,
    swap_probability: float,
) -> Framed:
    """Puts pieces between their special tokens.

    With `pairs`, a piece of two or more residues is cut into two parts at a uniformly
    random place. The parts are swapped with `swap_probability`.
    """
    if vocabulary.cls_id is None or vocabulary.sep_id is None:
        raise ValueError(f"{vocabulary.name} has no [CLS] and [SEP].")
    lengths = np.asarray(lengths, np.int64)
    is_pair = (lengths >= 2) & pairs
    cut = np.where(is_pair, 1, lengths)
    cut[is_pair] += random_bits.below(
        random_bits.fold(keys[is_pair], _CUT), lengths[is_pair] - 1
    )
    swapped = is_pair & (
        random_bits.fold(keys, _SWAP) < random_bits.threshold(swap_probability)
    )
    total = num_tokens(lengths, pairs)
    begins = np.cumsum(total) - total
    # Residues of the part that comes first.
    leading = np.where(swapped, lengths - cut, cut)

    position = streams.ordinals(lengths)
    in_first = position < np.repeat(np.where(swapped, 0, cut), lengths)
    place = position + np.where(in_first, 1, 2)
    of_swapped = np.repeat(swapped, lengths)
    in_a = position < np.repeat(cut, lengths)
    place[of_swapped & in_a] += np.repeat(lengths - cut, lengths)[of_swapped & in_a]
    later = of_swapped & ~in_a
    place[later] -= np.repeat(cut, lengths)[later] + 1
    place += np.repeat(begins, lengths)

    tokens = np.full(int(total.sum()), vocabulary.sep_id, np.uint8)
    tokens[begins] = vocabulary.cls_id
    tokens[place] = residues
    order_targets = np.zeros(len(tokens), np.uint8)
    order_weights = np.zeros(len(tokens), np.float32)
    order_targets[begins] = swapped
    order_weights[begins] = is_pair
    token_types = streams.ordinals(total) > np.repeat(leading + 1, total)
    parts = np.stack([cut, lengths - cut], axis=1).reshape(-1)
    return Framed(
        tokens=tokens,
        lengths=total,
        places=place,
        parts=parts,
        token_types=token_types.astype(np.uint8),
        order_targets=order_targets,
        order_weights=order_weights,
    )
