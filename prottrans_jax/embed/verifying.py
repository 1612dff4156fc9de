"""Whether files are whole and models give what they should."""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

import numpy as np

from prottrans_jax.embed import formats, inputs, keys
from prottrans_jax.proteins import plurals

# bio_embeddings' own limits for its reference vectors, which are float32.
RTOL, ATOL = 1e-3, 1e-5
# For vectors that were computed or kept in half precision.
_MIN_COSINE_HALF = 0.999


class Result(NamedTuple):
    """A protein's vectors against those known to be right.

    Attributes:
      name: Its id.
      largest: Largest absolute difference.
      cosine: Least cosine of two rows.
      passed: Whether that is within the limits.
    """

    name: str
    largest: float
    cosine: float
    passed: bool


class FileCheck(NamedTuple):
    """What reading an embedding file in full has shown.

    Attributes:
      faults: What is wrong, a line each.
      extra: Keys of proteins that are not in the input.
      truncated: Number of proteins of which not all residues were embedded.
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
    """What FASTA files ask for.

    Args:
      source: The file.
      key_scheme: One of `keys.SCHEMES`.
      allow_nucleotides: Whether records of nucleotides are taken for proteins.

    Returns:
      (sha256, residues) of every protein, by key, and what is wrong with the records
      that cannot be used, a line each.
    """
    found = inputs.look(
        source,
        key_scheme=key_scheme,
        on_bad="skip",
        on_duplicate="suffix",
        allow_nucleotides=allow_nucleotides,
    )
    wanted = {
        protein.key: (keys.digest(protein.residues), len(protein.residues))
        for protein in found.proteins()
    }
    return wanted, [skipped.detail for skipped in found.skipped]


def check_file(
    path: str | os.PathLike, wanted: Mapping[str, tuple] | None = None
) -> FileCheck:
    """Reads all of an embedding file and compares it with an input.

    Proteins that are not in the input are no fault: outputs keep those of earlier ones.

    Args:
      path: The file.
      wanted: What should be in it, from `expected`.
    """
    per_protein = formats.is_per_protein(formats.metadata(path))
    policy, limit, *_ = (formats.run_of(path) or {}).get("long") or ("", None)
    check = FileCheck([], [], 0)
    truncated = 0
    seen = set()
    try:
        for entry in formats.entries(path):
            seen.add(entry.key)
            # Of earlier versions `length` is that of the whole protein.
            truncated += entry.is_truncated or (
                policy == "truncate" and entry.length > (limit or 0)
            )
            if not np.isfinite(entry.array).all():
                check.faults.append(f"{entry.key}: values that are not finite")
            if wanted is None:
                continue
            if entry.key not in wanted:
                check.extra.append(entry.key)
                continue
            digest, length = wanted[entry.key]
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
    check.faults.extend(f"{key}: missing" for key in (wanted or {}) if key not in seen)
    return check._replace(truncated=truncated)


def compare(
    encoder: Any,
    golden: str | os.PathLike,
    source: str | os.PathLike | Sequence[str | os.PathLike],
) -> tuple[list[Result], list[str]]:
    """A model's vectors against a file of vectors known to be right.

    Where either was computed or kept in less than float32, only cosines are compared.

    Args:
      encoder: `encoders.Encoder`.
      golden: HDF5 or npz with a dataset per protein; keys are headers, first words,
        accessions or MD5 of the residues.
      source: FASTA with the proteins, a file or several.

    Returns:
      A result per protein of the file that is in the FASTA, and the names of those of
      the FASTA that are not in the file.

    Raises:
      ValueError: No protein of the FASTA is in the file.
    """
    found = inputs.look(source)
    proteins = list(found.proteins())
    by_key: dict[str, inputs.Protein] = {}
    for protein in proteins:
        header = f"{protein.name} {protein.description}"
        for key in keys.candidates(protein.key, protein.name, header, protein.residues):
            by_key.setdefault(key, protein)
    results = []
    compared = set()
    for entry in formats.entries(golden, wanted=by_key.__contains__):
        protein = by_key[entry.key]
        compared.add(protein.number)
        header = f"{protein.name} {protein.description}".strip()
        theirs = np.asarray(entry.array, np.float32)
        if theirs.ndim == 1:
            ours = encoder.embed([protein.residues.decode()], pool="mean")[0]
        else:
            ours = encoder.embed([protein.residues.decode()])[0]
        if ours.shape != theirs.shape:
            results.append(Result(header, float("inf"), 0.0, False))
            continue
        half = entry.array.dtype == np.float16 or encoder.dtype != "float32"
        norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosine = float((np.sum(ours * theirs, axis=-1) / norms).min())
        passed = (
            cosine >= _MIN_COSINE_HALF
            if half
            else np.allclose(ours, theirs, rtol=RTOL, atol=ATOL)
        )
        largest = float(np.abs(ours - theirs).max())
        results.append(Result(header, largest, cosine, bool(passed)))
    if not results:
        raise ValueError(f"No protein of {found.path} is in {golden}.")
    return results, [p.name for p in proteins if p.number not in compared]
