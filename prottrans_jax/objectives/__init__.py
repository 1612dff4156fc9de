"""The device half of each pre-training objective: a batch to its loss.

May import models and types. `losses` holds unreduced losses.
"""
