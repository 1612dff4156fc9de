"""Checks embedding files against FASTA, and models against reference vectors."""

from collections.abc import Mapping, Sequence
import os
from typing import NamedTuple

import numpy as np

from prottrans_jax.embed import formats, inputs, keys, settings
from prottrans_jax.proteins import plurals

# Limits of bio_embeddings for its reference vectors, which are float32.
RTOL, ATOL = 1e-3, 1e-5
# For vectors computed or stored in half precision.
_MIN_COSINE_HALF = 0.999


class Result(NamedTuple):
    """Comparison of a protein's vectors with reference vectors.

    Attributes:
      name: Its id.
      largest: Largest absolute difference.
      cosine: Smallest cosine similarity of two rows.
      passed: Whether the differences are within the limits.
    """

    name: str
    largest: float
    cosine: float
    passed: bool


class FileCheck(NamedTuple):
    """Result of reading an embedding file in full.

    Attributes:
      faults: One line for each fault.
      extra: Keys of proteins that are not in the input.
      truncated: Number of truncated proteins.
    """

    faults: list[str]
    extra: list[str]
    truncated: int


def expected(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    key_scheme: str,
    *,
    allow_nucleotides: bool = False,
) -> tuple[Mapping[str, tuple], list[str]]:
    """Reads the proteins that an embedding file should hold.

    Args:
      source: FASTA, a file or several.
      key_scheme: One of `keys.SCHEMES`.
      allow_nucleotides: Whether nucleotide sequences are accepted as proteins.

    Returns:
      (sha256, residues) of every protein by key, and one line for each record that
      cannot be used.
    """
    records = inputs.scan(
        source,
        key_scheme=key_scheme,
        on_bad="skip",
        on_duplicate="suffix",
        allow_nucleotides=allow_nucleotides,
    )
    expected_proteins = {
        protein.key: (keys.digest(protein.residues), len(protein.residues))
        for protein in records.proteins()
    }
    return expected_proteins, [skipped.detail for skipped in records.skipped]


def check_file(
    path: str | os.PathLike, expected_proteins: Mapping[str, tuple] | None = None
) -> FileCheck:
    """Reads all of an embedding file and compares it with an input.

    Proteins that are not in the input are not faults: outputs keep proteins of earlier
    inputs.

    Args:
      path: The file.
      expected_proteins: Proteins that should be in it, from `expected`.
    """
    per_protein = formats.is_per_protein(formats.metadata(path))
    policy, limit, *_ = (formats.run_of(path) or {}).get("long") or ("", None)
    check = FileCheck([], [], 0)
    truncated = 0
    seen = set()
    try:
        for entry in formats.entries(path):
            seen.add(entry.key)
            # In files of earlier versions `length` is that of the whole protein.
            truncated += entry.is_truncated or (
                policy == "truncate" and entry.length > (limit or 0)
            )
            if not np.isfinite(entry.array).all():
                check.faults.append(f"{entry.key}: values that are not finite")
            if expected_proteins is None:
                continue
            if entry.key not in expected_proteins:
                check.extra.append(entry.key)
                continue
            digest, length = expected_proteins[entry.key]
            if policy == "truncate":
                length = min(length, limit)
            if entry.sequence_sha256 and entry.sequence_sha256 != digest:
                check.faults.append(f"{entry.key}: made from another sequence")
            elif per_protein or entry.array.ndim == 1:
                continue
            elif entry.array.shape[-2] != length:
                rows = plurals.count(entry.array.shape[-2], "row")
                residues = plurals.count(length, "residue")
                check.faults.append(f"{entry.key}: {rows} for {residues}")
    except ValueError as error:
        check.faults.append(str(error))
        return check
    check.faults.extend(
        f"{key}: missing" for key in (expected_proteins or {}) if key not in seen
    )
    return check._replace(truncated=truncated)


def compare(
    encoder: settings.Encoder,
    golden: str | os.PathLike,
    source: str | os.PathLike | Sequence[str | os.PathLike],
) -> tuple[list[Result], list[str]]:
    """Compares a model's vectors with a file of reference vectors.

    If either was computed or stored in less than float32, only cosines are compared.

    Args:
      encoder: `encoders.frozen_models.Encoder`.
      golden: HDF5 or npz with a dataset per protein; keys are headers, first words,
        accessions or MD5 of the residues.
      source: FASTA with the proteins, a file or several.

    Returns:
      A result for each protein that is in both, and the names of proteins that are only
      in the FASTA.

    Raises:
      ValueError: No protein of the FASTA is in the file.
    """
    records = inputs.scan(source)
    proteins = list(records.proteins())
    by_key: dict[str, inputs.Protein] = {}
    for protein in proteins:
        header = f"{protein.name} {protein.description}"
        for key in keys.candidates(protein.key, protein.name, header, protein.residues):
            by_key.setdefault(key, protein)
    results = []
    compared = set()
    for entry in formats.entries(golden, select=by_key.__contains__):
        protein = by_key[entry.key]
        compared.add(protein.number)
        header = f"{protein.name} {protein.description}".strip()
        reference = np.asarray(entry.array, np.float32)
        if reference.ndim == 1:
            vectors = encoder.embed([protein.residues.decode()], pool="mean")[0]
        else:
            vectors = encoder.embed([protein.residues.decode()])[0]
        if vectors.shape != reference.shape:
            results.append(Result(header, float("inf"), 0.0, False))
            continue
        is_half = entry.array.dtype == np.float16 or encoder.dtype != "float32"
        norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(reference, axis=-1)
        cosine = float((np.sum(vectors * reference, axis=-1) / norms).min())
        passed = (
            cosine >= _MIN_COSINE_HALF
            if is_half
            else np.allclose(vectors, reference, rtol=RTOL, atol=ATOL)
        )
        largest = float(np.abs(vectors - reference).max())
        results.append(Result(header, largest, cosine, bool(passed)))
    if not results:
        raise ValueError(f"No protein of {records.path} is in {golden}.")
    return results, [p.name for p in proteins if p.number not in compared]
