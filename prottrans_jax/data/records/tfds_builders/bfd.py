"""BFD, the Big Fantastic Database: 2.1 billion proteins, mostly metagenomic."""

from collections.abc import Iterator
import io
import pathlib
import tarfile
from typing import IO, cast

from prottrans_jax.data.records.tfds_builders import base
from prottrans_jax.proteins import fasta, fasta_blocks

_ARCHIVE = "bfd_metaclust_clu_complete_id30_c90_final_seq.sorted_opt.tar.gz"


class Bfd(base.FastaBuilder):
    """BFD, from FASTA or from the HH-suite archive (272 GB) that its site offers.

    The archive holds one alignment (a3m) per cluster. Gaps are removed from its
    sequences; consensus sequences are skipped.
    """

    URL = f"https://bfd.mmseqs.com/{_ARCHIVE}"
    MANUAL_FILES = ("bfd.fasta.gz", "bfd.fasta", _ARCHIVE)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Optional: put bfd.fasta.gz, bfd.fasta or {_ARCHIVE} into the manual folder;
    otherwise the archive (272 GB) is fetched from https://bfd.mmseqs.com.
    """
    DESCRIPTION = "BFD: protein sequences of UniProt and metagenomes, with their id."
    HOMEPAGE = "https://bfd.mmseqs.com"
    CITATION = """@article{steinegger2019protein,
      title={Protein-level assembly increases protein sequence recovery from metagenomic
             samples manyfold},
      author={Steinegger, Martin and Mirdita, Milot and S{\\"o}ding, Johannes},
      journal={Nature Methods}, volume={16}, pages={603--606}, year={2019}}
    @article{steinegger2018clustering,
      title={Clustering huge protein sequence sets in linear time},
      author={Steinegger, Martin and S{\\"o}ding, Johannes},
      journal={Nature Communications}, volume={9}, pages={2542}, year={2018}}
    """

    def _blocks(self, path: pathlib.Path) -> Iterator[fasta_blocks.Block]:
        try:
            # A stream: the archive is read once, from start to end.
            archive = tarfile.open(path, "r|*")
        except tarfile.ReadError:
            yield from fasta.blocks(path)
            return
        with archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.name.endswith("_a3m.ffdata"):
                    name = f"{path}/{member.name}"
                    stream = cast(IO[bytes], _WithoutNuls(content))
                    yield from fasta.blocks(name, stream=stream)

    def _is_included(self, name: bytes) -> bool:
        return not name.endswith(b"_consensus")


class _WithoutNuls(io.BufferedIOBase):
    """A file without the NUL that ends each entry of an ffdata file."""

    def __init__(self, content: IO[bytes]):
        self._content = content

    def read(self, size: int | None = -1) -> bytes:
        """As `io.BufferedIOBase.read`."""
        size = -1 if size is None else size
        data = self._content.read(size)
        while data and not (text := data.replace(b"\0", b"")):
            data = self._content.read(size)
        return text if data else b""
