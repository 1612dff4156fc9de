"""Optimizers and learning-rate schedules, named as in the papers.

  algorithms    Adafactor, LAMB and AdamW as settings that build optax
  adafactor     Adafactor as in T5X, factored by logical axis names
  schedules     learning rates as functions of the step

Imports no other room.
"""

from prottrans_jax.optimizers.algorithms import Adafactor, AdamW, Lamb, Optimizer

__all__ = ["Adafactor", "AdamW", "Lamb", "Optimizer"]
