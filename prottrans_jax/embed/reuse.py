"""Finds existing vectors: in the output, or in other files such as UniProt's."""

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np

from prottrans_jax.embed import formats, inputs, keys, outputs, pooling, shards, writers
from prottrans_jax.files import json_text, paths

_HDF5 = (".h5", ".hdf5")


class Reusable:
    """Proteins that need not be computed, and their vectors.

    Attributes:
      where: [records] True at reusable records.
      in_output: [records] True at records whose vectors are in the existing output.
      has_output: Whether an output exists, in HDF5.
      keeps_others: Whether proteins of the output that are not in the input are kept.
    """

    def __init__(self, number, outputs, opened, others, pool, protein_ndim):
        self.where = np.zeros(number, bool)
        self.in_output = np.zeros(number, bool)
        self.has_output = bool(opened)
        self.keeps_others = bool(outputs)
        self._paths: Mapping[str, pathlib.Path] = outputs
        self._outputs: Mapping[str, Any] = opened
        self._others: Sequence[Any] = others
        self._pool = pool
        self._protein_ndim = protein_ndim
        self._source = np.full(number, -1, np.int16)

    def array(self, protein: inputs.Protein, kind: str) -> np.ndarray:
        """Vectors of a reusable protein."""
        if self.in_output[protein.number]:
            return self._outputs[kind][protein.key][()]
        file = self._others[self._source[protein.number]]
        array = _lookup(file, protein)[()]
        if kind == "protein" and array.ndim > self._protein_ndim:
            array = pooling.pool_protein(array, self._pool)
        return array

    def others(self, kind: str, entries: np.ndarray) -> Iterator[writers.Entry]:
        """Proteins of the existing output that are not in the input."""
        if kind in self._paths:
            yield from formats.entries(self._paths[kind], select=_is_none_of(entries))

    def count_others(self, kind: str, entries: np.ndarray) -> int:
        """Number of `others`."""
        if kind not in self._paths:
            return 0
        return count_others(self._paths[kind], entries)

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._outputs.values(), *self._others):
            file.close()


def count_others(path: paths.Place, entries: np.ndarray) -> int:
    """Proteins of an embedding file that are not in the input."""
    return sum(map(_is_none_of(entries), formats.keys(path)))


def _is_none_of(entries):
    """A predicate: True for keys that are not in the input."""
    present = {row.tobytes() for row in entries[:, :16]}
    return lambda key: inputs.key_hash(key) not in present


def identity_of(path: paths.Place) -> Mapping[str, Any]:
    """Identity of the run that made a finished output.

    Raises:
      shards.OtherRunError: The output does not record it.
    """
    if run := formats.run_of(path):
        return run
    raise shards.OtherRunError(
        f"{path} exists, but does not record that this program's embed made it. "
        "Choose another output, or --overwrite."
    )


def find(
    records: inputs.Inputs,
    outputs: Mapping[str, pathlib.Path],
    others: Sequence[str | os.PathLike],
    *,
    identity: Mapping[str, Any],
    kinds: Sequence[str],
    pool: str | None,
    shape: tuple[int, ...],
    lengths: np.ndarray,
) -> Reusable:
    """Looks up every record in the existing output, then in other files.

    A record is reusable if its key is there with the hash of its sequence or, in files
    without hashes, with as many rows as it has residues.

    Args:
      records: Records of the input.
      outputs: Existing outputs by kind; may be empty. Only HDF5 files are searched.
      others: HDF5 files of this machine with one dataset per protein at the root.
      identity: Identity of this run; the identity of `others` must not differ from it.
      kinds: Kinds of vectors that are needed: "residues", "protein".
      pool: Pooling that makes vectors per protein from a file of those per residue.
      shape: [*layers, d_model].
      lengths: Expected number of rows of each record.
    """
    opened = {
        kind: formats.open_hdf5(path)
        for kind, path in outputs.items()
        if path.suffix.lower() in _HDF5
    }
    reused = [_open(path, identity) for path in others]
    reusable = Reusable(len(records.lengths), outputs, opened, reused, pool, len(shape))
    if not opened and not reused:
        return reusable
    for protein in records.proteins():
        index = protein.number
        digest = keys.digest(protein.residues)
        rows = int(lengths[index])
        if opened and all(
            _matches(opened[kind].get(protein.key), digest, rows, kind, shape)
            for kind in kinds
        ):
            reusable.where[index] = reusable.in_output[index] = True
            continue
        for number, file in enumerate(reused):
            dataset = _lookup(file, protein)
            if dataset is not None and all(
                _matches(dataset, digest, rows, kind, shape)
                or (
                    kind == "protein"
                    and pool in ("mean", "max")
                    and _matches(dataset, digest, rows, "residues", shape)
                )
                for kind in kinds
            ):
                reusable.where[index] = True
                reusable._source[index] = number
                break
    return reusable


def _open(path: str | os.PathLike, identity: Mapping[str, Any]):
    try:
        file = formats.open_hdf5(path)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--reuse {error}") from None
    if outputs.IDENTITY not in file.attrs:
        return file  # For example UniProt's; it cannot be checked.
    before = json_text.parse(file.attrs[outputs.IDENTITY])
    names = ["weights_fingerprint", "dtype_compute", "layer", "prefix"]
    if file.attrs.get("pooling", "none") != "none":
        names.append("pooling")
    if (before.get("long") or [""])[0] in ("chunk", "truncate"):
        names.append("long")
    shards.refuse_other_run(
        pathlib.Path(path),
        {name: before.get(name) for name in names},
        {name: identity.get(name) for name in names},
        advice="Reuse vectors of the same model and settings.",
    )
    return file


def _lookup(file, protein: inputs.Protein):
    """The dataset of a protein, or None. Links and external data are not followed."""
    import h5py

    header = f"{protein.name} {protein.description}"
    names = keys.candidates(protein.key, protein.name, header, protein.residues)
    for key in names:
        if "/" in key or "\0" in key or key in ("", ".", ".."):
            continue
        link = file.get(key, getlink=True) if key in file else None
        if isinstance(link, h5py.HardLink):
            dataset = file[key]
            if (
                isinstance(dataset, h5py.Dataset)
                and dataset.dtype.kind == "f"
                and not dataset.is_virtual
                and not dataset.external
            ):
                return dataset
    return None


def _matches(
    dataset, digest: str, rows: int, kind: str, shape: tuple[int, ...]
) -> bool:
    if dataset is None:
        return False
    expected_shape = shape if kind == "protein" else (*shape[:-1], rows, shape[-1])
    if dataset.shape != expected_shape:
        return False
    return str(dataset.attrs.get("sequence_sha256", digest)) == digest
