"""Known contacts, and the precision of predicted ones.

Pairs are grouped by their separation |i - j| as in CASP: short 6 to 11, medium 12 to
23, long 24 and more. P@L/k is the share of contacts among the L/k pairs (rounded down,
at least 1) with the highest scores, L the number of residues; if a range has fewer
pairs, among all of them.
"""

from collections.abc import Mapping
import os
import zipfile

from jaxtyping import Bool, Float
import numpy as np

from prottrans_jax.files import paths

# Separations, the second excluded.
RANGES: Mapping[str, tuple[int, int | None]] = {
    "short": (6, 12),
    "medium": (12, 24),
    "long": (24, None),
}
FRACTIONS = (1, 2, 5)
# Angstrom between C-beta atoms (C-alpha of glycine), the field's definition.
CONTACT_DISTANCE = 8.0
# Raised by `np.load` for .npy files, pickles, and empty or truncated files.
UNREADABLE = (TypeError, ValueError, EOFError, zipfile.BadZipFile)


def known_contacts(
    array: np.ndarray, length: int, where: str
) -> tuple[Bool[np.ndarray, "length length"], Bool[np.ndarray, "length length"]]:
    """Contacts, and pairs for which they are known.

    Args:
      array: [length, length]: bool or integers, 1 at contacts and -1 at unknown pairs;
        or distances in angstrom, NaN if unknown: contacts are under
        `CONTACT_DISTANCE`.
      length: Residues of the protein.
      where: Name of the array in messages.

    Raises:
      ValueError: The shape is another one, or floats are contacts, not distances.
    """
    if array.shape != (length, length):
        raise ValueError(
            f"{where} has the shape {list(array.shape)}; the protein has {length} "
            "residues."
        )
    if np.issubdtype(array.dtype, np.floating):
        known = np.isfinite(array)
        if known.any() and np.isin(array[known], (-1, 0, 1)).all():
            raise ValueError(
                f"{where} has the type {array.dtype}, which is for distances, but only "
                "the values -1, 0 and 1. Save contacts as integers or bool."
            )
        return known & (np.where(known, array, np.inf) < CONTACT_DISTANCE), known
    return array == 1, array >= 0


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays of an npz by the proteins' keys; see `known_contacts`.

    Raises:
      ValueError: Not an npz file.
    """
    place = paths.local(path, "the file of contacts")
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE:
        # NumPy's messages advise to unpickle the file, which would run its code.
        raise ValueError(f"{place}: not an npz file of arrays.") from None


def precision(
    scores: Float[np.ndarray, "length length"],
    contacts: Bool[np.ndarray, "length length"],
    known: Bool[np.ndarray, "length length"] | None = None,
) -> dict[str, float]:
    """Precision by range and number of pairs: {"long P@L": ..., "long P@L/2": ...}.

    Args:
      scores: Higher is more likely; the upper triangle is used.
      contacts: True at contacts.
      known: True at pairs that count; None: all.

    Returns:
      NaN for a range without pairs.
    """
    length = len(scores)
    result = {}
    for name, (least, below) in RANGES.items():
        rows, columns = np.triu_indices(length, least)
        chosen = np.ones(len(rows), bool)
        if below is not None:
            chosen &= columns - rows < below
        if known is not None:
            chosen &= known[rows, columns]
        rows, columns = rows[chosen], columns[chosen]
        order = np.argsort(-scores[rows, columns], kind="stable")
        hits = contacts[rows, columns][order]
        for fraction in FRACTIONS:
            top = hits[: max(length // fraction, 1)]
            label = f"{name} P@L" + (f"/{fraction}" if fraction > 1 else "")
            result[label] = float(top.mean()) if len(top) else float("nan")
    return result
