"""BFD (Steinegger et al. 2019): 2.1 billion proteins, most of them metagenomic."""

from prottrans_jax.tasks import pretraining

pretraining.add("bfd")
