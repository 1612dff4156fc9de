"""The sample of Swiss-Prot that the package ships."""

from prottrans_jax.tasks import pretraining

pretraining.add("sample")
