"""SeqIO tasks of the library; importing this package registers them."""

from prottrans_jax.tasks import bfd, fasta, sample, uniref

__all__ = ["bfd", "fasta", "sample", "uniref"]
