"""Vectors of an encoder, computed once with the embedding job, read from disk.

The job writes npz, whose arrays are stored without compression: the rows of a batch are
read straight into its array, and memory does not grow with the number of proteins.
"""

from collections.abc import Iterable
import os
import pathlib
import struct
import zipfile

from jaxtyping import Float
import numpy as np

from prottrans_jax.embed import job, keys, reports, settings
from prottrans_jax.files import paths, writing

# Fixed part of a member's header; the lengths of name and extra field are its end.
_LOCAL_HEADER, _LENGTHS = 30, struct.Struct("<HH")


class StoredVectors:
    """Vectors by sequence, in an npz file of the embedding job with keys "md5".

    Args:
      path: The file.

    Raises:
      ValueError: A member is compressed, or not an array of floats.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._file = open(self.path, "rb")
        # Place of the first value in the file, and shape.
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.dtype = np.dtype(np.float32)
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                self._places[key] = self._place(info)
        self.d_model = next((s[-1] for _, s in self._places.values()), 0)

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, tuple[int, ...]]:
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{self.path}: {info.filename} is compressed; write the file with "
                "prottrans embed."
            )
        header = os.pread(self._file.fileno(), _LOCAL_HEADER, info.header_offset)
        self._file.seek(info.header_offset + sum(_LENGTHS.unpack(header[26:30])) + 30)
        version = np.lib.format.read_magic(self._file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, self.dtype = read(self._file)
        if self.dtype.kind != "f" or is_fortran:
            raise ValueError(f"{self.path}: {info.filename} is not an array of floats.")
        return self._file.tell(), shape

    def __len__(self) -> int:
        return len(self._places)

    def num_rows(self, residues: str) -> int:
        """Number of vectors of a sequence: 1 if the file has one per protein."""
        shape = self._places[_key(residues)][1]
        return shape[0] if len(shape) > 1 else 1

    def read_into(
        self, residues: str, rows: Float[np.ndarray, "length d_model"]
    ) -> None:
        """Copies the vectors of a sequence from the file to the first of the rows.

        Raises:
          OSError: The file ends before them.
        """
        start, shape = self._places[_key(residues)]
        number = shape[0] if len(shape) > 1 else 1
        target = rows[:number].reshape(-1).view(np.uint8)
        if os.preadv(self._file.fileno(), [target.data], start) != target.size:
            raise OSError(f"{self.path} is shorter than when it was opened.")


def _key(residues: str) -> str:
    return keys.make("md5", "", "", residues.encode(), 0)


def compute(
    encoder: settings.Encoder,
    sequences: Iterable[str],
    path: str | os.PathLike,
    *,
    pooled: bool,
    max_length: int | None = None,
    **callbacks,
) -> tuple[StoredVectors, reports.Report]:
    """Embeds sequences into a file, unless it holds them; resumes after a kill.

    Args:
      encoder: `encoders.frozen_models.Encoder`.
      sequences: Residues; equal ones are computed once.
      path: The npz file. A FASTA file of the sequences is written beside it.
      pooled: One vector per protein, the mean of its residues, instead of one per
        residue.
      max_length: Longer proteins are truncated to this number of residues.
      **callbacks: on_plan and on_progress of `embed.job.embed_fasta`.

    Raises:
      ValueError: The path is in a bucket. Besides, as `embed_fasta`.
    """
    # Batches are read at random places of the file.
    path = paths.local(path, "vectors")
    path.parent.mkdir(parents=True, exist_ok=True)
    fasta = path.with_suffix(".fasta")
    distinct = dict.fromkeys(sequences)
    lines = (f">{_key(residues)}\n{residues}\n" for residues in distinct)
    writing.write_synced(fasta, "".join(lines).encode())
    options = settings.Options(
        per_residue=not pooled,
        per_protein=pooled,
        key="md5",
        allow_nucleotides=True,
        max_length=max_length,
        long="error" if max_length is None else "truncate",
    )
    report = job.embed_fasta(encoder, fasta, path, options, **callbacks)
    return StoredVectors(path), report
