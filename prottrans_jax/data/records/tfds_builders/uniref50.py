"""UniRef50 of the current UniProt release."""

from prottrans_jax.data.records.tfds_builders import base


class Uniref50(base.UnirefBuilder):
    """UniRef50: clusters of UniProtKB and UniParc sequences, one record each."""
