"""UniRef100 of the current UniProt release."""

from prottrans_jax.data.records.tfds_builders import base

_FTP = "https://ftp.uniprot.org/pub/databases/uniprot/current_release/uniref/uniref100"


class Uniref100(base.FastaBuilder):
    """UniRef100: clusters of UniProtKB and UniParc sequences, one record each."""

    URL = f"{_FTP}/uniref100.fasta.gz"
    MANUAL_FILES = ("uniref100.fasta.gz", "uniref100.fasta")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Optional: put uniref100.fasta.gz or uniref100.fasta into the manual folder, to use
    a given release and not the current one, which is fetched from {_FTP}.
    Earlier releases: https://ftp.uniprot.org/pub/databases/uniprot/previous_releases
    """
    DESCRIPTION = "UniRef100 cluster representatives: protein sequences with their id."
    HOMEPAGE = "https://www.uniprot.org/help/uniref"
    CITATION = """@article{suzek2015uniref,
      title={UniRef clusters: a comprehensive and scalable alternative for improving
             sequence similarity searches},
      author={Suzek, Baris E and Wang, Yuqi and Huang, Hongzhan and McGarvey, Peter B
              and Wu, Cathy H and {UniProt Consortium}},
      journal={Bioinformatics}, volume={31}, number={6}, pages={926--932}, year={2015}}
    """
