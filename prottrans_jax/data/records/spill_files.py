"""Files between the passes of `prepare`: segments of the input, parts of splits.

A segment holds an index, [3, num_buckets + 1] uint64, of the cumulative numbers of
records, payload bytes and id entries by bucket; then records, id entries, payloads. A
part holds a table of key, size and length by record; its payloads are in a second file.
"""

from collections.abc import Iterable, Iterator
import os
import pathlib

import jaxtyping
import numpy as np

# `ordinal` is file << 40 | line: the place in the input; it orders all records.
RECORD = np.dtype(
    [
        ("ordinal", "<u8"),
        ("seq_hi", "<u8"),
        ("seq_lo", "<u8"),
        ("id_hi", "<u8"),
        ("id_lo", "<u8"),
        ("size", "<u4"),
        ("length", "<u4"),
        ("split", "<u4"),
    ]
)
ID = np.dtype([("id_hi", "<u8"), ("id_lo", "<u8"), ("seq_hi", "<u8"), ("at", "<u8")])


def segment(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Path of a segment: the records of one block."""
    return folder / f"segment-{number:07d}"


def part(folder: pathlib.Path, split: int, bucket: int) -> pathlib.Path:
    """Path of a part: the records of one bucket and split."""
    return folder / f"part-{split}-{bucket:07d}"


def write_segment(
    path: pathlib.Path,
    num_buckets: int,
    buckets: jaxtyping.UInt64[np.ndarray, " records"],
    meta: np.ndarray,
    names: list[bytes],
    residues: list[bytes],
) -> None:
    """Writes the records of a block, grouped by bucket.

    Args:
      path: of the segment.
      num_buckets: number of buckets.
      buckets: bucket of each record.
      meta: [records] of `RECORD`.
      names: ids.
      residues: sequences.
    """
    if num_buckets > 1:
        order = np.argsort(buckets, kind="stable")
        names = [names[i] for i in order.tolist()]
        residues = [residues[i] for i in order.tolist()]
        buckets, sorted_meta = buckets[order], meta[order]
    else:
        sorted_meta = meta
    index = np.zeros((3, num_buckets + 1), np.uint64)
    borders = np.searchsorted(buckets, np.arange(num_buckets + 1))
    index[0] = borders
    index[1] = np.concatenate([[0], np.cumsum(sorted_meta["size"], dtype=np.uint64)])[
        borders
    ]
    ids = np.empty(len(meta), ID)
    for field in ("id_hi", "id_lo", "seq_hi"):
        ids[field] = meta[field]
    ids["at"] = meta["ordinal"]
    id_bucket = meta["id_hi"] % np.uint64(num_buckets)
    id_order = np.argsort(id_bucket, kind="stable")
    index[2] = np.searchsorted(id_bucket[id_order], np.arange(num_buckets + 1))
    with path.open("wb") as out:
        out.write(index.tobytes())
        out.write(sorted_meta.tobytes())
        out.write(ids[id_order].tobytes())
        # All payloads (`record_writer.payload`) in one join.
        parts = [b"\n"] * (3 * len(names))
        parts[0::3], parts[2::3] = names, residues
        out.write(b"".join(parts))


def read_bucket(
    path: pathlib.Path, num_buckets: int, bucket: int
) -> tuple[np.ndarray, bytes]:
    """Records of a bucket, [records] of `RECORD`, and their joined payloads."""
    fd = os.open(path, os.O_RDONLY)
    try:
        index, at = _index_of(fd, num_buckets)
        low, high = index[0, bucket], index[0, bucket + 1]
        meta = _pread(fd, (high - low) * RECORD.itemsize, at + low * RECORD.itemsize)
        blobs_at = at + index[0, -1] * (RECORD.itemsize + ID.itemsize)
        low, high = index[1, bucket], index[1, bucket + 1]
        return np.frombuffer(meta, RECORD), _pread(fd, high - low, blobs_at + low)
    finally:
        os.close(fd)


def read_ids(path: pathlib.Path, num_buckets: int, bucket: int) -> np.ndarray:
    """Entries of one group of ids, [entries] of `ID`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        index, at = _index_of(fd, num_buckets)
        low, high = index[2, bucket], index[2, bucket + 1]
        at += int(index[0, -1]) * RECORD.itemsize
        data = _pread(fd, (high - low) * ID.itemsize, at + low * ID.itemsize)
        return np.frombuffer(data, ID)
    finally:
        os.close(fd)


def write_part(
    path: pathlib.Path,
    meta: np.ndarray,
    keys: np.ndarray,
    chunks: Iterable[tuple[list[bytes], list[int]]],
) -> None:
    """Writes sorted records of one bucket and split: `keys` order them."""
    table = np.empty(len(keys), [("key", "<u8"), ("size", "<u4"), ("length", "<u4")])
    table["key"], table["size"], table["length"] = keys, meta["size"], meta["length"]
    with path.open("wb") as out:
        np.save(out, table)
    with path.with_suffix(".blob").open("wb") as out:
        for payloads, _ in chunks:
            out.write(b"".join(payloads))


def read_part(path: pathlib.Path) -> Iterator[tuple[int, bytes, int]]:
    """(key, payload, length) of every record of a part."""
    table = np.load(path, mmap_mode="r")
    with path.with_suffix(".blob").open("rb", buffering=1 << 16) as blob:
        for start in range(0, len(table), 4096):
            for key, size, length in table[start : start + 4096].tolist():
                yield key, blob.read(size), length


def _index_of(fd: int, num_buckets: int) -> tuple[np.ndarray, int]:
    num_bytes = 3 * (num_buckets + 1) * 8
    index = np.frombuffer(os.pread(fd, num_bytes, 0), "<u8").astype(np.int64)
    return index.reshape(3, -1), num_bytes


def _pread(fd: int, num_bytes: int, at: int) -> bytes:
    # One call reads at most 2 GiB.
    pieces = []
    while num_bytes:
        piece = os.pread(fd, int(min(num_bytes, 1 << 30)), int(at))
        if not piece:
            raise OSError("a segment file ends early")
        pieces.append(piece)
        num_bytes -= len(piece)
        at += len(piece)
    return b"".join(pieces)
