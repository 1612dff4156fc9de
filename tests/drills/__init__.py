"""Drills: losses made on purpose, and what is left after them; `run.py` runs them."""
