"""The sample of Swiss-Prot that is part of the package."""

from prottrans_jax.tasks import pretraining

pretraining.add("sample")
