"""UniRef100 of the current UniProt release."""

from prottrans_jax.data.records.tfds_builders import base


class Uniref100(base.UnirefBuilder):
    """UniRef100: clusters of UniProtKB and UniParc sequences, one record each."""
