"""The user's own sequences: `data_dir` is the folder that `prepare` made."""

from prottrans_jax.tasks import pretraining

pretraining.add("fasta")
