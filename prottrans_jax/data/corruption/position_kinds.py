"""Kinds of positions, the values of the features `corrupted` and `decoder_corrupted`.

The corruption writes them, the objective splits its metrics by them. Imports nothing.
"""

INTACT = 0  # not selected; in a masked language model, not predicted
MASKED = 1  # replaced by [MASK] or a sentinel
SUBSTITUTED = 2  # replaced by another residue
KEPT = 3  # selected and predicted, but shown unchanged
