"""Optimizers and schedules, named as in the papers. Imports no other room."""

from prottrans_jax.optimizers.algorithms import Adafactor, AdamW, Lamb, Optimizer

__all__ = ["Adafactor", "AdamW", "Lamb", "Optimizer"]
