"""UniRef50, UniRef100 and BFD as TFDS data sets of {"id", "sequence"}.

  tfds build uniref50 --imports=prottrans_jax.data.records.tfds_builders \
      --data_dir=... [--manual_dir=FOLDER_WITH_uniref50.fasta.gz]
  python -m prottrans_jax.prepare --tfds=uniref50 --tfds_data_dir=... --output=...

or in one step, without TFDS: `python -m prottrans_jax.prepare --input=FASTA`.
"""

import collections
from collections.abc import Iterable, Iterator, Set
import dataclasses
import io
import pathlib
import tarfile
from typing import IO, Any, cast

from absl import logging
import tensorflow_datasets as tfds

from prottrans_jax.files import digests
from prottrans_jax.proteins import fasta, fasta_blocks, fasta_problems

VALIDATION_SHARE = 0.01  # As in `prepare`, by the same hash.
_UNIREF = "https://ftp.uniprot.org/pub/databases/uniprot/current_release/uniref"
_EARLIER_UNIREF = "https://ftp.uniprot.org/pub/databases/uniprot/previous_releases"
BFD_ARCHIVE = "bfd_metaclust_clu_complete_id30_c90_final_seq.sorted_opt.tar.gz"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where a corpus comes from.

    Attributes:
      url: File that is downloaded.
      manual_files: The first of these in the manual folder is used instead.
      instructions: What to put into the manual folder, for users.
      description: One sentence, for users.
      homepage: For users.
      citation: BibTeX.
    """

    url: str
    manual_files: tuple[str, ...]
    instructions: str
    description: str
    homepage: str
    citation: str


def _uniref(name: str) -> Corpus:
    file = name.lower()
    return Corpus(
        url=f"{_UNIREF}/{file}/{file}.fasta.gz",
        manual_files=(f"{file}.fasta.gz", f"{file}.fasta"),
        instructions=(
            f"Optional: put {file}.fasta.gz or {file}.fasta into the manual folder, to "
            "use a given release instead of the current one, which is downloaded from "
            f"{_UNIREF}/{file}. Earlier releases: {_EARLIER_UNIREF}"
        ),
        description=(
            f"{name} cluster representatives: protein sequences with their id."
        ),
        homepage="https://www.uniprot.org/help/uniref",
        citation="""@article{suzek2015uniref,
      title={UniRef clusters: a comprehensive and scalable alternative for improving
             sequence similarity searches},
      author={Suzek, Baris E and Wang, Yuqi and Huang, Hongzhan and McGarvey, Peter B
              and Wu, Cathy H and {UniProt Consortium}},
      journal={Bioinformatics}, volume={31}, number={6}, pages={926--932}, year={2015}}
    """,
    )


# By the name of the builder's class.
CORPORA = {
    "Uniref50": _uniref("UniRef50"),
    "Uniref100": _uniref("UniRef100"),
    "Bfd": Corpus(
        url=f"https://bfd.mmseqs.com/{BFD_ARCHIVE}",
        manual_files=("bfd.fasta.gz", "bfd.fasta", BFD_ARCHIVE),
        instructions=(
            f"Optional: put bfd.fasta.gz, bfd.fasta or {BFD_ARCHIVE} into the manual "
            "folder; otherwise the archive (272 GB) is fetched from "
            "https://bfd.mmseqs.com."
        ),
        description="BFD: protein sequences of UniProt and metagenomes, with their id.",
        homepage="https://bfd.mmseqs.com",
        citation="""@article{steinegger2019protein,
      title={Protein-level assembly increases protein sequence recovery from metagenomic
             samples manyfold},
      author={Steinegger, Martin and Mirdita, Milot and S{\\"o}ding, Johannes},
      journal={Nature Methods}, volume={16}, pages={603--606}, year={2019}}
    @article{steinegger2018clustering,
      title={Clustering huge protein sequence sets in linear time},
      author={Steinegger, Martin and S{\\"o}ding, Johannes},
      journal={Nature Communications}, volume={9}, pages={2542}, year={2018}}
    """,
    ),
}


class FastaBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """A TFDS data set read from FASTA, downloaded or from the manual folder.

    Records (id, upper-case residues) and the split by the hash of the id are those of
    `data.records.preparing`. Bad records, and training records with the sequence of a
    validation record, are left out and counted in the log. Keys are line numbers,
    because ids of BFD are not unique.
    """

    VERSION = tfds.core.Version("1.0.0")
    CORPUS: Corpus

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.CORPUS = CORPORA[cls.__name__]
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = cls.CORPUS.instructions

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"id": text, "sequence": text}),
            description=self.CORPUS.description,
            homepage=self.CORPUS.homepage,
            citation=self.CORPUS.citation,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterable]:
        path = pathlib.Path(
            self._manual_file(dl_manager) or dl_manager.download(self.CORPUS.url)
        )
        # 8 bytes per record: for BFD a set of 21 million numbers, about 1.3 GB.
        held_out = {
            _hash(example["sequence"])
            for _, example in self._generate_examples(path, True, frozenset())
        }
        splits: dict[str, Iterable] = {
            "train": self._generate_examples(path, False, held_out)
        }
        # TFDS refuses an empty split, which a small file may have.
        if held_out:
            splits["validation"] = self._generate_examples(path, True, frozenset())
        return splits

    def _manual_file(
        self, dl_manager: tfds.download.DownloadManager
    ) -> pathlib.Path | None:
        try:
            folder = pathlib.Path(dl_manager.manual_dir)
        except AssertionError:  # TFDS raises it if there is no manual folder.
            return None
        paths = (folder / name for name in self.CORPUS.manual_files)
        return next((path for path in paths if path.exists()), None)

    def _generate_examples(
        self, path: pathlib.Path, validation: bool, left_out: Set[int]
    ) -> Iterator[tuple[int, dict[str, bytes]]]:
        bad: collections.Counter[str] = collections.Counter()
        for block in self._blocks(path):
            parsed = fasta_blocks.parse(block)
            for problem in (*block.problems, *parsed.problems):
                if problem.fatal:
                    raise fasta_problems.FastaError(problem)
                bad[problem.reason] += 1
                logging.log_first_n(logging.WARNING, "left out: %s", 20, str(problem))
            columns = zip(parsed.names, parsed.residues, parsed.lines, strict=True)
            for name, residues, line in columns:
                if not self._is_included(name) or in_validation(name) != validation:
                    continue
                if left_out and _hash(residues) in left_out:
                    bad["same sequence as a validation record"] += 1
                    continue
                yield line, {"id": name, "sequence": residues}
        for reason, number in bad.items():
            logging.warning("%s: left out %d: %s", path, number, reason)

    def _blocks(self, path: pathlib.Path) -> Iterator[fasta_blocks.Block]:
        return fasta.blocks(path)

    def _is_included(self, name: bytes) -> bool:
        del name
        return True


class Uniref50(FastaBuilder):
    """UniRef50: clusters of UniProtKB and UniParc sequences, one record each."""


class Uniref100(FastaBuilder):
    """UniRef100: clusters of UniProtKB and UniParc sequences, one record each."""


class Bfd(FastaBuilder):
    """BFD, from FASTA or from the HH-suite archive (272 GB) that its site offers.

    2.1 billion proteins, mostly metagenomic. The archive holds one alignment (a3m) per
    cluster. Gaps are removed from its sequences; consensus sequences are skipped.
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
                if member.issym() or member.islnk():
                    raise ValueError(
                        f"{path}: {member.name} is a link, which is not followed. Give "
                        "an archive of files."
                    )
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


def in_validation(name: bytes) -> bool:
    """Whether the hash of an id puts it into the validation split."""
    word = digests.raw(name)[8:16]
    return int.from_bytes(word, "little") < VALIDATION_SHARE * 2**64


def _hash(sequence: bytes) -> int:
    return int.from_bytes(digests.raw(sequence)[:8], "little")
