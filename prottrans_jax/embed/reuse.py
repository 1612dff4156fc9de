"""Vectors that exist already: in the output as it is, or in files such as UniProt's."""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from prottrans_jax.embed import formats, inputs, keys, outputs, pooling, shards, writers

_HDF5 = (".h5", ".hdf5")


class Known:
    """Which proteins need not be computed, and their vectors.

    Attributes:
      where: [records] True at those.
      in_output: [records] True at those that the output holds already.
      has_output: Whether there is an output already, in HDF5.
      keeps_others: Whether proteins of the output that are not in the input stay.
    """

    def __init__(self, number: int, paths, outputs, others, pool, protein_ndim):
        self.where = np.zeros(number, bool)
        self.in_output = np.zeros(number, bool)
        self.has_output = bool(outputs)
        self.keeps_others = bool(paths)
        self._paths: Mapping[str, pathlib.Path] = paths
        self._outputs: Mapping[str, Any] = outputs
        self._others: Sequence[Any] = others
        self._pool = pool
        self._protein_ndim = protein_ndim
        self._source = np.full(number, -1, np.int16)

    def array(self, protein: inputs.Protein, kind: str) -> np.ndarray:
        """Vectors of a known protein."""
        if self.in_output[protein.number]:
            return self._outputs[kind][protein.key][()]
        file = self._others[self._source[protein.number]]
        array = _lookup(file, protein)[()]
        if kind == "protein" and array.ndim > self._protein_ndim:
            array = pooling.pool_protein(array, self._pool)
        return array

    def others(self, kind: str, entries: np.ndarray) -> Iterator[writers.Entry]:
        """Proteins of the output as it is that are not in the input."""
        if kind in self._paths:
            yield from formats.entries(self._paths[kind], wanted=_is_none_of(entries))

    def count_others(self, kind: str, entries: np.ndarray) -> int:
        """Number of `others`."""
        if kind not in self._paths:
            return 0
        return count_others(self._paths[kind], entries)

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._outputs.values(), *self._others):
            file.close()


def count_others(path: pathlib.Path, entries: np.ndarray) -> int:
    """Proteins of an embedding file that are not in the input."""
    return sum(map(_is_none_of(entries), formats.keys(path)))


def _is_none_of(entries):
    """Whether a key is none of the input's."""
    present = {row.tobytes() for row in entries[:, :16]}
    return lambda key: inputs.key_hash(key) not in present


def identity_of(path: pathlib.Path) -> Mapping[str, Any]:
    """What a finished output says it is.

    Raises:
      shards.OtherRunError: It does not say.
    """
    if run := formats.run_of(path):
        return run
    raise shards.OtherRunError(
        f"{path} exists and was not made by this program's embed, or does not say so. "
        "Choose another output, or --overwrite."
    )


def find(
    found: inputs.Inputs,
    outputs: Mapping[str, pathlib.Path],
    others: Sequence[str | os.PathLike],
    *,
    identity: Mapping[str, Any],
    kinds: Sequence[str],
    pool: str | None,
    shape: tuple[int, ...],
    lengths: np.ndarray,
) -> Known:
    """Looks every record up in the output as it is, then in other files.

    A record counts as known if its key is there with the hash of its sequence, or, in
    files without hashes, with as many rows as it has residues.

    Args:
      found: The records.
      outputs: The output as it is, by kind; empty if there is none. Records are looked
        up in HDF5 alone.
      others: HDF5 files with one dataset per protein at the root.
      identity: Of this run: what `others` say of themselves must not differ from it.
      kinds: What is wanted: "residues", "protein".
      pool: Pooling, for vectors per protein from a file of those per residue.
      shape: [*layers, d_model].
      lengths: Rows that each record's vectors should have.
    """
    opened = {
        kind: formats.open_hdf5(path)
        for kind, path in outputs.items()
        if path.suffix.lower() in _HDF5
    }
    reused = [_open(path, identity) for path in others]
    known = Known(len(found.lengths), outputs, opened, reused, pool, len(shape))
    if not opened and not reused:
        return known
    for protein in found.proteins():
        index = protein.number
        digest = keys.digest(protein.residues)
        rows = int(lengths[index])
        if opened and all(
            _matches(opened[kind].get(protein.key), digest, rows, kind, shape)
            for kind in kinds
        ):
            known.where[index] = known.in_output[index] = True
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
                known.where[index] = True
                known._source[index] = number
                break
    return known


def _open(path: str | os.PathLike, identity: Mapping[str, Any]):
    try:
        file = formats.open_hdf5(path)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--reuse {error}") from None
    if outputs.IDENTITY not in file.attrs:
        return file  # UniProt's, for one: believed.
    before = json.loads(file.attrs[outputs.IDENTITY])
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
    """The dataset of a protein: plain ones only, never a link into another file."""
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
    wanted = shape if kind == "protein" else (*shape[:-1], rows, shape[-1])
    if dataset.shape != wanted:
        return False
    return str(dataset.attrs.get("sequence_sha256", digest)) == digest
