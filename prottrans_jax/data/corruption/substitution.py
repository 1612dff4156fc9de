"""Another amino acid in the place of one: the random share of every corruption."""

import jaxtyping
import numpy as np

from prottrans_jax.data.rows import random_bits
from prottrans_jax.proteins import vocabulary as vocabulary_lib


def another_amino_acid(
    vocabulary: vocabulary_lib.Vocabulary,
    originals: jaxtyping.UInt8[np.ndarray, " count"],
    bits: jaxtyping.UInt64[np.ndarray, " count"],
) -> jaxtyping.Int32[np.ndarray, " count"]:
    """One of the 19 others, evenly; instead of X, one of all 20.

    Args:
      vocabulary: whose ids these are.
      originals: what is replaced.
      bits: of each its random bits.
    """
    amino_acids = vocabulary.residue_ids
    count = len(amino_acids)
    rank = np.full(vocabulary.size, count)
    rank[amino_acids] = np.arange(count)
    rank = rank[originals]
    known = rank < count
    draw = random_bits.below(bits, np.where(known, count - 1, count))
    return amino_acids[np.where(known, (rank + 1 + draw) % count, draw)]
