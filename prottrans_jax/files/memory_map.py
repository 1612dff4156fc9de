"""Memory-mapped files, and releasing their pages.

Pages of a mapped file that were read count as the process's memory until the kernel
reclaims them. A conversion reads every page once: with `release` after each array the
process holds one array at a time, not the whole file.
"""

import mmap
import os

import numpy as np


def map_file(path: str | os.PathLike) -> np.ndarray:
    """A file's bytes, read-only, read from disk on access."""
    if os.path.getsize(path) == 0:
        return np.zeros(0, np.uint8)  # mmap refuses empty files.
    return np.memmap(path, np.uint8, mode="r")


def release(array: np.ndarray) -> None:
    """Releases the pages of a view of a mapped file; a later access reads them again.

    Does nothing for other arrays.
    """
    base = array
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    mapped = getattr(base, "_mmap", None)
    if mapped is None or not hasattr(mapped, "madvise"):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    origin = np.lib.array_utils.byte_bounds(base)[0]
    # Whole pages only: the first and the last may hold parts of other arrays.
    start = -(-(low - origin) // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (high - origin) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)
