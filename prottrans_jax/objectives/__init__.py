"""Losses on a batch given a model, one file per pre-training objective."""
