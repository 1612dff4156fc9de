"""The device half of each pre-training objective: computes the loss of a batch.

May import models and types. `losses` holds unreduced losses.
"""
