"""Embeddings as a Zarr v3 group, written and read with the `zarr` library.

  ids [proteins]               string
  original_ids, descriptions, sequence_sha256 [proteins]   string
  lengths [proteins]           int64, residues
  offsets [proteins + 1]       int64: rows of protein i are offsets[i] to offsets[i + 1]
  vectors [rows, d_model]      a row per residue, proteins concatenated; or a row per
                               protein. With several layers [rows, layers, d_model]

The attribute `rows` of the group is "residues" or "proteins". Chunks have a CRC-32C. In
folders of earlier versions those of strings have the CRC-32 of gzip instead, and chunks
of zeros are not stored.

The earlier layout is also read: `embeddings`, `shapes`, and `ids`, concatenated JSON of
all proteins, with the end of each in `id_stops`.
"""

from collections.abc import Callable, Iterator, Mapping
import pathlib
from typing import Any

import numpy as np

from prottrans_jax.embed import damage
from prottrans_jax.files import json_text, writing

METADATA = "zarr.json"
STRINGS = ("ids", "original_ids", "descriptions", "sequence_sha256")
NUMBERS = ("lengths", "offsets", "vectors")
_EARLIER = ("embeddings", "shapes", "ids", "id_stops")
# All arrays of either layout.
ARRAYS = tuple(dict.fromkeys((*STRINGS, *NUMBERS, *_EARLIER)))
# Never all zero, as are vectors, so that every version stored each of their chunks.
_ALWAYS_STORED = (*STRINGS, "offsets")
_CHUNK_ROWS, _CHUNK_PROTEINS = 4096, 1 << 14
_LAYOUT = 2


def import_zarr() -> Any:
    """The zarr library.

    Raises:
      ValueError: It is not installed; the message says how to install it.
    """
    try:
        import zarr
        import zarr.codecs
        import zarr.errors
        import zarr.storage
    except ImportError:
        raise ValueError(
            "Zarr needs zarr: pip install 'prottrans_jax[zarr]'."
        ) from None
    return zarr


class Writer:
    """Adds proteins one by one; memory holds a chunk of each array."""

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        zarr = import_zarr()
        self._path = path
        # "none" in a file per residue; may be absent.
        self._pooled = metadata.get("pooling", "none") != "none"
        self._kind: tuple[str, int, tuple[int, ...]] | None = None
        self._end = 0
        attributes = {**metadata, "layout": _LAYOUT, "rows": "residues"}
        self._group = zarr.create_group(path, zarr_format=3, attributes=attributes)
        self._columns: dict[str, _Column] = {}

    def add(self, entry: Any) -> None:
        """Adds a `writers.Entry`.

        Raises:
          ValueError: Its vectors differ in kind or shape from earlier ones.
        """
        array = entry.array
        is_protein = array.ndim == 1 or (self._pooled and array.ndim == 2)
        rows = "proteins" if is_protein else "residues"
        if is_protein:
            vectors = array[None]
        else:  # [*layers, residues, d_model] -> [residues, *layers, d_model]
            vectors = np.moveaxis(array, -2, 0)
        kind = rows, array.ndim, vectors.shape[1:]
        if self._kind is None:
            self._kind = kind
            self._group.update_attributes({"rows": rows})
            self._begin(vectors)
        if kind != self._kind:
            raise ValueError(
                f"{entry.key}: vectors of shape {array.shape} do not fit this Zarr "
                f"folder: it holds {self._kind[1]}-dimensional arrays, a row of shape "
                f"{self._kind[2]} for each of its {self._kind[0]}."
            )
        self._end += len(vectors)
        self._columns["vectors"].append(vectors)
        for name, value in (
            ("lengths", entry.length),
            ("offsets", self._end),
            ("ids", entry.key),
            ("original_ids", entry.original_id),
            ("descriptions", entry.description),
            ("sequence_sha256", entry.sequence_sha256),
        ):
            self._columns[name].append([value])

    def close(self) -> None:
        """Finishes the folder and synchronises it to disk."""
        if self._kind is None:
            self._begin(np.zeros((0, 1), np.float32))
        for column in self._columns.values():
            column.close()
        for path in self._path.rglob("*"):
            if path.is_file():
                writing.sync(path)

    def _begin(self, like: np.ndarray) -> None:
        zarr = import_zarr()
        checksum = zarr.codecs.Crc32cCodec()
        # Zstandard, not gzip, which stores the time: the same embeddings must give the
        # same bytes.
        compressed = [zarr.codecs.ZstdCodec(level=1), checksum]
        for name in (*STRINGS, *NUMBERS):
            is_vectors = name == "vectors"
            row = like.shape[1:] if is_vectors else ()
            chunk_rows = _CHUNK_ROWS if is_vectors else _CHUNK_PROTEINS
            dtype = like.dtype if is_vectors else np.int64
            array = self._group.create_array(
                name,
                shape=(0, *row),
                chunks=(chunk_rows, *row),
                dtype=str if name in STRINGS else dtype,
                compressors=compressed if name in STRINGS else [checksum],
                # A missing chunk is one that was lost.
                config={"write_empty_chunks": True},
            )
            self._columns[name] = _Column(array)
        self._columns["offsets"].append([0])


class _Column:
    """A Zarr array that grows by whole chunks."""

    def __init__(self, array: Any):
        self._array = array
        self._rows: list[Any] = []

    def append(self, rows: np.ndarray | list) -> None:
        """Adds rows: an array, or a list of numbers or texts."""
        self._rows.extend(rows)
        chunk_rows = self._array.chunks[0]
        if len(self._rows) >= chunk_rows:
            self._write(len(self._rows) - len(self._rows) % chunk_rows)

    def close(self) -> None:
        if self._rows:
            self._write(len(self._rows))

    def _write(self, number: int) -> None:
        start, *row = self._array.shape
        self._array.resize((start + number, *row))
        is_text = isinstance(self._rows[0], str)
        dtype = object if is_text else self._array.dtype
        self._array[start:] = np.array(self._rows[:number], dtype)
        del self._rows[:number]


def read(
    path: pathlib.Path, select: Callable[[str], bool]
) -> Iterator[tuple[str, str, str, int, str, np.ndarray]]:
    """Yields the fields of a `writers.Entry` for every selected key.

    Raises:
      ValueError: The folder holds no embeddings, or is damaged; or zarr is missing.
    """
    if (path / "id_stops").is_dir():
        yield from _read_earlier(path, select)
        return
    if not (path / "offsets").is_dir():
        raise ValueError(f"{path} is not a Zarr folder of embeddings.")
    with damage.naming(path, METADATA):
        attributes = import_zarr().open_group(path, mode="r").attrs
    per_protein = attributes.get("rows") == "proteins"
    lengths = _read_whole(path, "lengths")
    # Before texts are read: their number is not limited by what is stored.
    numbers_of_texts = {_open(path, name).shape[0] for name in STRINGS}
    if numbers_of_texts | {len(lengths)} == {0}:
        return
    offsets = _read_whole(path, "offsets")
    if {len(offsets) - 1, len(lengths), *numbers_of_texts} != {len(lengths)}:
        raise ValueError(
            f"{path} is damaged: its arrays differ in the number of proteins."
        )
    texts = [_read_whole(path, name) for name in STRINGS]
    vectors = _Rows(path, "vectors")
    for i, (key, original_id, description, digest) in enumerate(
        zip(*texts, strict=True)
    ):
        if not select(key):
            continue
        rows = vectors.read(int(offsets[i]), int(offsets[i + 1]), key)
        array = rows[0] if per_protein else np.moveaxis(rows, 0, -2)
        yield key, original_id, description, int(lengths[i]), digest, array


class _Rows:
    """Reads rows of an array in ascending order; holds a chunk and a protein."""

    def __init__(self, path: pathlib.Path, name: str):
        self._path, self._folder = path, path / name
        self._array = _open(path, name)
        self._chunk_rows = self._array.chunks[0]
        self._held = (-1, np.zeros(0))

    def read(self, start: int, stop: int, key: str) -> np.ndarray:
        """A copy of rows `start` to `stop`, the end excluded, of the protein `key`."""
        with damage.naming(self._path, f"the vectors of {key}"):
            if not 0 <= start <= stop <= self._array.shape[0]:
                raise ValueError(f"there are no rows {start} to {stop}")
            parts = [self._array[:0]]
            size = self._chunk_rows
            for first in range(start - start % size, stop, size):
                chunk = self._chunk(first)
                parts.append(chunk[max(start - first, 0) : stop - first])
            return np.concatenate(parts)

    def _chunk(self, first: int) -> np.ndarray:
        if self._held[0] != first:
            place = first // self._chunk_rows, *(0 for _ in self._array.shape[1:])
            # zarr reads a missing chunk as zeros.
            key = self._array.metadata.encode_chunk_key(place)
            if not (self._folder / key).is_file():
                raise ValueError(f"its chunk {key} is missing")
            damage.check_array(
                self._path,
                f"the chunk {key} of {self._folder.name}",
                self._array.chunks,
                self._array.dtype,
                (self._folder / key).stat().st_size,
            )
            self._held = (first, self._array[first : first + self._chunk_rows])
        return self._held[1]


def _open(path: pathlib.Path, name: str) -> Any:
    zarr = import_zarr()
    with damage.naming(path, f"the array {name}"):
        return zarr.open_array(path / name, mode="r")


def _read_whole(path: pathlib.Path, name: str) -> Any:
    array = _open(path, name)
    with damage.naming(path, f"the array {name}"):
        missing = array.nchunks - array.nchunks_initialized
        # zarr reads a missing chunk as zeros.
        if missing and name in _ALWAYS_STORED:
            raise ValueError(f"{missing} of its {array.nchunks} chunks are missing")
        if name not in STRINGS:
            chunks = (file for file in (path / name).rglob("*") if file.is_file())
            stored_bytes = sum(file.stat().st_size for file in chunks)
            part = f"the numbers of {name}"
            damage.check_array(path, part, array.shape, array.dtype, stored_bytes)
        return array[:].tolist() if name in STRINGS else array[:]


def _read_earlier(path: pathlib.Path, select) -> Iterator[tuple]:
    ids = _open(path, "ids")
    with damage.naming(path, "the array ids"):
        text = ids[:].tobytes()
    stops, shapes = (_read_whole(path, name) for name in ("id_stops", "shapes"))
    values = _Rows(path, "embeddings")
    start = at = 0
    for stop, shape in zip(stops, shapes, strict=True):
        about = json_text.parse(text[start:stop])
        start = int(stop)
        shape = tuple(int(n) for n in shape if n >= 0)
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        if select(about[0]):
            array = values.read(at, at + rows, about[0])
            yield *about, array.reshape(shape)
        at += rows
