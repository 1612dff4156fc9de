"""UniRef50 and UniRef100 (Suzek et al. 2015): cluster representatives of UniProt."""

from prottrans_jax.tasks import pretraining

pretraining.add("uniref50")
pretraining.add("uniref100")
