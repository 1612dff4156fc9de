"""SeqIO tasks of the library; importing this package registers them."""

from prottrans_jax.tasks import bfd, fasta, labelled_tasks, sample, uniref

__all__ = ["bfd", "fasta", "labelled_tasks", "sample", "uniref"]
