"""The user's own sequences: `data_dir` is a folder made by `prepare`."""

from prottrans_jax.tasks import pretraining

pretraining.add("fasta")
