"""Random substitution of amino acids, shared by the corruptions."""

import jaxtyping
import numpy as np

from prottrans_jax.data import random_bits
from prottrans_jax.proteins import vocabulary as vocabulary_lib


def another_amino_acid(
    vocabulary: vocabulary_lib.Vocabulary,
    originals: jaxtyping.UInt8[np.ndarray, " count"],
    bits: jaxtyping.UInt64[np.ndarray, " count"],
) -> jaxtyping.Int32[np.ndarray, " count"]:
    """Draws uniformly from the 19 other amino acids; for X, from all 20.

    Args:
      vocabulary: the vocabulary of the ids.
      originals: ids to be replaced.
      bits: random bits of each id.
    """
    amino_acids = vocabulary.residue_ids
    count = len(amino_acids)
    rank = np.full(vocabulary.size, count)
    rank[amino_acids] = np.arange(count)
    rank = rank[originals]
    is_standard = rank < count
    draw = random_bits.below(bits, np.where(is_standard, count - 1, count))
    return amino_acids[np.where(is_standard, (rank + 1 + draw) % count, draw)]
