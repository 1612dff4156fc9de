"""Base class of the builders: reads FASTA, yields {"id", "sequence"}."""

import collections
from collections.abc import Iterable, Iterator, Set
import pathlib
from typing import Any

from absl import logging
import tensorflow_datasets as tfds

from prottrans_jax.files import digests
from prottrans_jax.proteins import fasta, fasta_blocks, fasta_problems

_UNIREF = "https://ftp.uniprot.org/pub/databases/uniprot/current_release/uniref"
VALIDATION_SHARE = 0.01  # As in `prepare`, by the same hash.


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
    URL: str
    DESCRIPTION: str
    HOMEPAGE: str
    CITATION: str
    # The first of these in the manual folder is used instead of the download.
    MANUAL_FILES: tuple[str, ...]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"id": text, "sequence": text}),
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        path = pathlib.Path(
            self._manual_file(dl_manager) or dl_manager.download(self.URL)
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

    def _manual_file(self, dl_manager: Any) -> pathlib.Path | None:
        try:
            folder = pathlib.Path(dl_manager.manual_dir)
        except AssertionError:  # TFDS raises it if there is no manual folder.
            return None
        paths = (folder / name for name in self.MANUAL_FILES)
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


class UnirefBuilder(FastaBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A clustering of UniRef; the name of a subclass gives its files and texts."""

    HOMEPAGE = "https://www.uniprot.org/help/uniref"
    CITATION = """@article{suzek2015uniref,
      title={UniRef clusters: a comprehensive and scalable alternative for improving
             sequence similarity searches},
      author={Suzek, Baris E and Wang, Yuqi and Huang, Hongzhan and McGarvey, Peter B
              and Wu, Cathy H and {UniProt Consortium}},
      journal={Bioinformatics}, volume={31}, number={6}, pages={926--932}, year={2015}}
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        name = cls.__name__.lower()
        folder = f"{_UNIREF}/{name}"
        cls.URL = f"{folder}/{name}.fasta.gz"
        cls.MANUAL_FILES = (f"{name}.fasta.gz", f"{name}.fasta")
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Optional: put {name}.fasta.gz or {name}.fasta into the manual folder, to use a given
    release instead of the current one, which is downloaded from {folder}.
    Earlier releases: https://ftp.uniprot.org/pub/databases/uniprot/previous_releases
    """
        cls.DESCRIPTION = (
            f"{cls.__name__.replace('Uniref', 'UniRef')} cluster representatives: "
            "protein sequences with their id."
        )


def in_validation(name: bytes) -> bool:
    """Whether the hash of an id puts it into the validation split."""
    word = digests.raw(name)[8:16]
    return int.from_bytes(word, "little") < VALIDATION_SHARE * 2**64


def _hash(sequence: bytes) -> int:
    return int.from_bytes(digests.raw(sequence)[:8], "little")
