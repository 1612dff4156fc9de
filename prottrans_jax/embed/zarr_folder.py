"""Embeddings as a Zarr v3 group, readable by zarr-python and AnnData.

  ids [proteins]               string
  original_ids, descriptions, sequence_sha256 [proteins]   string
  lengths [proteins]           int64, residues
  offsets [proteins + 1]       int64: rows of protein i are offsets[i] to offsets[i + 1]
  vectors [rows, d_model]      a row per residue, proteins concatenated; or a row per
                               protein. With several layers [rows, layers, d_model]

The attribute `rows` of the group is "residues" or "proteins". Chunks of numbers have a
CRC-32C, those of strings the CRC-32 of gzip.

The earlier layout is also read: `embeddings`, `shapes`, and `ids`, concatenated JSON of
all proteins, with the end of each in `id_stops`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import gzip
import json
import os
import pathlib
import re
import struct
from typing import Any
import zlib

import numpy as np

from prottrans_jax.embed import damage
from prottrans_jax.files import writing

METADATA = "zarr.json"
STRINGS = ("ids", "original_ids", "descriptions", "sequence_sha256")
NUMBERS = ("lengths", "offsets", "vectors")
_EARLIER = ("embeddings", "shapes", "ids", "id_stops")
# All arrays of either layout.
ARRAYS = tuple(dict.fromkeys((*STRINGS, *NUMBERS, *_EARLIER)))
_CHUNK_ROWS, _CHUNK_PROTEINS = 4096, 1 << 14
_LAYOUT = 2


class Writer:
    """Adds proteins one by one; memory holds a chunk of each array."""

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        path.mkdir(parents=True)
        self._path = path
        self._metadata = dict(metadata)
        # "none" in a file per residue; may be absent.
        self._pooled = metadata.get("pooling", "none") != "none"
        self._kind: tuple[str, int, tuple[int, ...]] | None = None
        self._end = 0
        self._strings = {name: _Strings(path / name) for name in STRINGS}
        self._numbers: dict[str, _Numbers] = {}
        self._write_group("residues")

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
            self._write_group(rows)
        if kind != self._kind:
            raise ValueError(
                f"{entry.key}: vectors of shape {array.shape} do not fit this Zarr "
                f"folder: it holds {self._kind[1]}-dimensional arrays, a row of shape "
                f"{self._kind[2]} for each of its {self._kind[0]}."
            )
        if not self._numbers:
            self._begin(vectors)
        self._end += len(vectors)
        self._numbers["vectors"].append(vectors)
        self._numbers["lengths"].append(np.array([entry.length], np.int64))
        self._numbers["offsets"].append(np.array([self._end], np.int64))
        texts = entry.key, entry.original_id, entry.description, entry.sequence_sha256
        for name, text in zip(STRINGS, texts, strict=True):
            self._strings[name].append(text)

    def close(self) -> None:
        """Finishes the folder and synchronises it to disk."""
        if not self._numbers:
            self._begin(np.zeros((0, 1), np.float32))
        for strings in self._strings.values():
            strings.close()
        for numbers in self._numbers.values():
            numbers.close()
        for path in self._path.rglob("*"):
            if path.is_file():
                writing.sync_file(path)

    def _begin(self, like: np.ndarray) -> None:
        index = np.zeros(0, np.int64)
        self._numbers = {
            "vectors": _Numbers(self._path / "vectors", like, _CHUNK_ROWS),
            "lengths": _Numbers(self._path / "lengths", index, _CHUNK_PROTEINS),
            "offsets": _Numbers(self._path / "offsets", index, _CHUNK_PROTEINS),
        }
        self._numbers["offsets"].append(np.zeros(1, np.int64))

    def _write_group(self, rows: str) -> None:
        attributes = self._metadata | {"layout": _LAYOUT, "rows": rows}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        _write_json(self._path / METADATA, group)


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Turns a ValueError of tensorstore that names an OS error into an OSError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


class _Numbers:
    """A Zarr array of numbers that grows by whole chunks."""

    def __init__(self, path: pathlib.Path, like: np.ndarray, chunk_rows: int):
        import tensorstore as ts

        chunk = [chunk_rows, *like.shape[1:]]
        with _errors_of_the_system():
            self._store = ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(path)},
                    "metadata": {
                        "shape": [0, *like.shape[1:]],
                        "chunk_grid": {
                            "name": "regular",
                            "configuration": {"chunk_shape": chunk},
                        },
                        "data_type": like.dtype.name,
                        "codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                    },
                    "create": True,
                }
            ).result()
        self._chunk_rows = chunk_rows
        self._rows = 0
        self._held: list[np.ndarray] = []
        self._held_rows = 0

    def append(self, rows: np.ndarray) -> None:
        self._held.append(rows)
        self._held_rows += len(rows)
        if self._held_rows >= self._chunk_rows:
            self._write(self._held_rows - self._held_rows % self._chunk_rows)

    def close(self) -> None:
        if self._held_rows:
            self._write(self._held_rows)

    def _write(self, number: int) -> None:
        held = np.concatenate(self._held)
        stop = self._rows + number
        with _errors_of_the_system():
            self._store = self._store.resize(
                exclusive_max=[stop, *self._store.shape[1:]]
            ).result()
            self._store[self._rows : stop].write(held[:number]).result()
        self._rows = stop
        self._held, self._held_rows = [held[number:]], self._held_rows - number


class _Strings:
    """A Zarr array of strings (codec vlen-utf8), which tensorstore cannot write."""

    def __init__(self, path: pathlib.Path):
        (path / "c").mkdir(parents=True)
        self._path = path
        self._number = 0
        self._held: list[bytes] = []
        self._write_metadata()

    def append(self, text: str) -> None:
        self._held.append(text.encode())
        self._number += 1
        if len(self._held) == _CHUNK_PROTEINS:
            self._write_chunk()

    def close(self) -> None:
        if self._held:
            # Zarr chunks always have full size.
            self._held += [b""] * (_CHUNK_PROTEINS - len(self._held))
            self._write_chunk()
        self._write_metadata()

    def _write_chunk(self) -> None:
        parts = [struct.pack("<I", len(self._held))]
        for text in self._held:
            parts += [struct.pack("<I", len(text)), text]
        # A fixed date: the same embeddings give the same bytes.
        data = gzip.compress(b"".join(parts), compresslevel=1, mtime=0)
        number = (self._number - 1) // _CHUNK_PROTEINS
        (self._path / "c" / str(number)).write_bytes(data)
        self._held = []

    def _write_metadata(self) -> None:
        grid = {"chunk_shape": [_CHUNK_PROTEINS]}
        separator = {"name": "default", "configuration": {"separator": "/"}}
        metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self._number],
            "data_type": "string",
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": separator,
            "fill_value": "",
            "codecs": [
                {"name": "vlen-utf8", "configuration": {}},
                {"name": "gzip", "configuration": {"level": 1}},
            ],
            "attributes": {},
            "storage_transformers": [],
        }
        _write_json(self._path / METADATA, metadata)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read(
    path: pathlib.Path, select: Callable[[str], bool]
) -> Iterator[tuple[str, str, str, int, str, np.ndarray]]:
    """Yields the fields of a `writers.Entry` for every selected key.

    Raises:
      ValueError: The folder holds no embeddings, or is damaged.
    """
    if (path / "id_stops").is_dir():
        yield from _read_earlier(path, select)
        return
    if not (path / "offsets").is_dir():
        raise ValueError(f"{path} is not a Zarr folder of embeddings.")
    group = json.loads((path / METADATA).read_text(encoding="utf-8"))
    per_protein = group.get("attributes", {}).get("rows") == "proteins"
    texts = [_read_strings(path / name) for name in STRINGS]
    lengths = _read_numbers(path, _open_numbers(path, "lengths"), "the array lengths")
    if not (len(lengths) or any(texts)):
        return
    offsets = _read_numbers(path, _open_numbers(path, "offsets"), "the array offsets")
    if {len(offsets) - 1, len(lengths), *map(len, texts)} != {len(lengths)}:
        raise ValueError(
            f"{path} is damaged: its arrays differ in the number of proteins."
        )
    vectors = _open_numbers(path, "vectors")
    for i, (key, original_id, description, digest) in enumerate(
        zip(*texts, strict=True)
    ):
        if not select(key):
            continue
        part = vectors[int(offsets[i]) : int(offsets[i + 1])]
        rows = _read_numbers(path, part, f"the vectors of {key}")
        array = rows[0] if per_protein else np.moveaxis(rows, 0, -2)
        yield key, original_id, description, int(lengths[i]), digest, array


def _open_numbers(path: pathlib.Path, name: str) -> Any:
    import tensorstore as ts

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path / name)},
        # Chunks of zeros are not stored. Those of vectors and offsets are never all
        # zero, so a missing one was lost.
        "fill_missing_data_reads": name not in ("vectors", "embeddings", "offsets"),
    }
    with damage.naming(path, f"the array {name}"):
        return ts.open(spec, read=True).result()


def _read_numbers(path: pathlib.Path, array: Any, part: str) -> np.ndarray:
    with damage.naming(path, part):
        return array.read().result()


def _read_strings(path: pathlib.Path) -> list[str]:
    metadata = json.loads((path / METADATA).read_text(encoding="utf-8"))
    number = metadata["shape"][0]
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    texts: list[str] = []
    for index in range(-(-number // chunk)):
        place = path / "c" / str(index)
        try:
            texts += _split(gzip.decompress(place.read_bytes()))
        except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
            raise ValueError(f"{place} is damaged: {error}") from error
    return texts[:number]


def _split(data: bytes) -> Iterator[str]:
    (number,) = struct.unpack_from("<I", data)
    at = 4
    for _ in range(number):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size].decode()
        at += 4 + size


def _read_earlier(path: pathlib.Path, select) -> Iterator[tuple]:
    arrays = {name: _open_numbers(path, name) for name in _EARLIER}
    ids, stops, shapes = (
        _read_numbers(path, arrays[name], f"the array {name}")
        for name in ("ids", "id_stops", "shapes")
    )
    text = ids.tobytes()
    values = arrays["embeddings"]
    start = at = 0
    for stop, shape in zip(stops, shapes, strict=True):
        about = json.loads(text[start:stop])
        start = int(stop)
        shape = tuple(int(n) for n in shape if n >= 0)
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        if select(about[0]):
            part = values[at : at + rows]
            array = _read_numbers(path, part, f"the vectors of {about[0]}")
            yield *about, array.reshape(shape)
        at += rows
