"""Writers of output files: HDF5 in UniProt's layout, npz, Parquet, Zarr and CSV."""

from collections.abc import Iterator, Mapping
import csv
import io
import json
import os
import pathlib
import re
import struct
import tempfile
from typing import IO, Any, NamedTuple, Protocol
import zipfile

import numpy as np

from prottrans_jax.embed import zarr_folder
from prottrans_jax.files import locks, paths, writing


class Entry(NamedTuple):
    """One protein in an output file.

    Attributes:
      key: Name in the file.
      original_id: First word of the FASTA header, unescaped.
      description: Rest of the header.
      length: Number of embedded residues.
      sequence_sha256: SHA-256 of all upper-case residues of the protein.
      array: [*layers, residues, d_model] or [*layers, d_model].
      sequence_length: Residues of the protein, more than `length` if it was truncated;
        0 if unknown.
    """

    key: str
    original_id: str
    description: str
    length: int
    sequence_sha256: str
    array: np.ndarray
    sequence_length: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether only the first `length` residues were embedded."""
        return self.sequence_length > self.length


class Writer(Protocol):
    """Writes proteins one by one; memory does not grow with their number."""

    def add(self, entry: Entry) -> None:
        """Adds a protein."""

    def close(self) -> None:
        """Finishes the file and synchronises it to disk."""


class _Hdf5:
    """One dataset per protein at the root, everything else in attributes.

    No other dataset or group: ProtSpace reads every one as a protein.

    HDF5 crashes the process if the disk is full while it writes. So space is reserved
    before each write, and the unused rest is released at the end.
    """

    # Bytes reserved at a time, and bytes reserved beyond the expected need.
    _AHEAD, _SPARE = 64 << 20, 1 << 20
    # Offset of the file's end in superblock versions 2 and 3, a little-endian uint64.
    _END_AT = 28

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        import h5py

        self._path = path
        creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
        # Without times in the root group, the same embeddings give the same bytes.
        creation.set_obj_track_times(False)
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        # Needs readers of HDF5 1.10 or later; 356 bytes per dataset instead of 2,490.
        access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
        access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
        # No other process writes here, and some file systems have no locks.
        access.set_file_locking(False, True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        # Not available on macOS.
        self._reserves = hasattr(os, "posix_fallocate")
        self._file: Any = None
        try:
            self._reserved = 0
            self._reserve(0)  # HDF5 writes as it creates the file, which empties it.
            self._file = h5py.File(
                h5py.h5f.create(
                    os.fsencode(path), h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access
                )
            )
            self._reserved = 0
            self._reserve(self._file.id.get_filesize())
            for name, value in metadata.items():
                self._file.attrs[name] = value
        except BaseException:
            self.close()
            raise

    def _reserve(self, num_bytes: int) -> None:
        needed = num_bytes + self._SPARE
        if needed <= self._reserved or not self._reserves:
            return
        for end in (needed + self._AHEAD, needed):
            try:
                os.posix_fallocate(
                    self._descriptor, self._reserved, end - self._reserved
                )
                self._reserved = end
                return
            except OSError as error:
                if (
                    writing.no_room(error) is None
                ):  # The file system does not support it.
                    self._reserves = False
                    return
                if end == needed:
                    raise

    def add(self, entry: Entry) -> None:
        self._reserve(self._file.id.get_filesize() + entry.array.nbytes)
        # A checksum needs a chunked layout: the array is one chunk.
        dataset = self._file.create_dataset(
            entry.key, data=entry.array, chunks=entry.array.shape, fletcher32=True
        )
        dataset.attrs["original_id"] = entry.original_id
        dataset.attrs["sequence_sha256"] = entry.sequence_sha256
        dataset.attrs["length"] = entry.length
        if entry.is_truncated:
            dataset.attrs["sequence_length"] = entry.sequence_length
        if entry.description:
            dataset.attrs["description"] = _fitting(entry.description)

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
                end = os.pread(self._descriptor, 8, self._END_AT)
                os.ftruncate(self._descriptor, int.from_bytes(end, "little"))
        finally:
            os.close(self._descriptor)
        writing.sync(self._path)


def _fitting(text: str) -> str:
    # HDF5 stores attributes over 64 KiB densely, which not all readers support.
    return text.encode()[:60_000].decode(errors="ignore")


class _Npz:
    """One array per protein; zip stores a CRC. Metadata are in OUTPUT.json only."""

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        self._path = path
        del metadata
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        # zipfile would keep millions of entries in memory until the end.
        self._directory = _ZipDirectory(path.parent)
        self._zip.filelist = self._directory  # type: ignore[assignment]

    def add(self, entry: Entry) -> None:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, entry.array, allow_pickle=False)
        # A fixed date: the same embeddings give the same bytes.
        info = zipfile.ZipInfo(f"{entry.key}.npy")
        self._zip.writestr(info, buffer.getbuffer())
        self._zip.NameToInfo.clear()

    def close(self) -> None:
        self._zip.close()
        self._directory.close()
        writing.sync(self._path)


class _ZipDirectory:
    """A list of zip entries for `zipfile`, kept in a temporary file."""

    _FIXED = struct.Struct("<QQLH")

    def __init__(self, folder: pathlib.Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._number = 0

    def append(self, info: zipfile.ZipInfo) -> None:
        name = info.filename.encode()
        fixed = info.header_offset, info.file_size, info.CRC, len(name)
        self._file.write(self._FIXED.pack(*fixed) + name)
        self._number += 1

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self._file.seek(0)
        while fixed := self._file.read(self._FIXED.size):
            offset, size, crc, name_bytes = self._FIXED.unpack(fixed)
            info = zipfile.ZipInfo(self._file.read(name_bytes).decode())
            info.header_offset, info.CRC = offset, crc
            info.file_size = info.compress_size = size
            info.external_attr = 0o600 << 16  # Default of `zipfile`.
            yield info

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A row per protein, in the order of the input; pages carry checksums.

    id, original_id, description, sequence_sha256   string
    length                                          int64, residues
    shape                                           list of int64
    embedding                                       list of floats, in C order

    `embedding` of vectors per residue is a flattened [*layers, residues, d_model],
    which every reader supports; `shape` restores it.
    """

    _ROWS = 256

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        self._path = path
        self._metadata = metadata
        self._rows: list[Entry] = []
        self._writer: Any = None

    def add(self, entry: Entry) -> None:
        self._rows.append(entry)
        if len(self._rows) == self._ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        else:  # No protein: a table without rows.
            import pyarrow as pa

            empty = pa.table({"id": pa.array([], pa.string())})
            import_parquet().write_table(empty, self._path)
        writing.sync(self._path)

    def _flush(self) -> None:
        pq = import_parquet()
        import pyarrow as pa

        if not self._rows:
            return
        rows, self._rows = self._rows, []
        values = np.concatenate([row.array.ravel() for row in rows])
        offsets = np.cumsum([0] + [row.array.size for row in rows])
        table = pa.table(
            {
                "id": [row.key for row in rows],
                "original_id": [row.original_id for row in rows],
                "description": [row.description for row in rows],
                "length": pa.array([row.length for row in rows], pa.int64()),
                "sequence_sha256": [row.sequence_sha256 for row in rows],
                "shape": [list(row.array.shape) for row in rows],
                "embedding": pa.LargeListArray.from_arrays(
                    pa.array(offsets, pa.int64()), pa.array(values)
                ),
            }
        )
        if self._writer is None:
            text = {name: str(value) for name, value in self._metadata.items()}
            schema = table.schema.with_metadata(text)
            self._writer = pq.ParquetWriter(
                self._path, schema, write_page_checksum=True, use_dictionary=False
            )
        self._writer.write_table(table.cast(self._writer.schema))


class _Csv:
    """A line per protein: its key, then its vector. Not for vectors per residue."""

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
        del metadata  # In the file beside it.
        self._path = path
        self._file = open(path, "w", newline="", encoding="utf-8")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self._csv = csv.writer(self._file, delimiter=delimiter, lineterminator="\n")
        self._begun = False

    def add(self, entry: Entry) -> None:
        if entry.array.ndim != 1:
            raise ValueError(
                f"{entry.key}: CSV cannot hold {entry.array.ndim}-dimensional "
                "embeddings. Write one vector per protein (embed --per-protein, "
                "reformat --pool mean), or choose .h5, .npz, .parquet or .zarr."
            )
        if not self._begun:
            self._csv.writerow(["id", *range(entry.array.size)])
            self._begun = True
        # The shortest text that parses to the same number.
        self._csv.writerow([entry.key, *map(str, entry.array)])

    def close(self) -> None:
        self._file.close()
        writing.sync(self._path)


def open_hdf5(path: pathlib.Path | IO[bytes]) -> Any:
    """Opens an HDF5 file for reading, also on a file system without locks."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        number = re.search(r"unable to lock file, errno = (\d+)", str(error))
        if number is None or int(number[1]) not in locks.NO_LOCKS:
            raise
    # Only as a fallback: HDF5 refuses a file already open here with other locking.
    return h5py.File(path, "r", locking=False)


def import_parquet() -> Any:
    """pyarrow.parquet.

    Raises:
      ValueError: It is not installed; the message says how to install it.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            "Parquet needs pyarrow: pip install 'prottrans_jax[parquet]'."
        ) from None
    return parquet


class Format(NamedTuple):
    """One output format.

    Attributes:
      writer: Class that is called with the path and the metadata.
      first_bytes: With these every file of the format begins, by which `outputs`
        recognises our own; empty for a folder.
    """

    writer: type
    first_bytes: bytes


_HDF5_FIRST_BYTES = b"\x89HDF\r\n\x1a\n"
FORMATS: Mapping[str, Format] = {
    ".h5": Format(_Hdf5, _HDF5_FIRST_BYTES),
    ".hdf5": Format(_Hdf5, _HDF5_FIRST_BYTES),
    ".npz": Format(_Npz, b"PK"),
    ".parquet": Format(_Parquet, b"PAR1"),
    ".zarr": Format(zarr_folder.Writer, b""),
    ".csv": Format(_Csv, b"id,"),
    ".tsv": Format(_Csv, b"id\t"),
}


def check_path(
    path: str | os.PathLike, *, per_residue: bool, several_layers: bool = False
) -> paths.Place:
    """The path of an output.

    Raises:
      ValueError: A URL, an unknown format, one whose library is not installed, or one
        that cannot hold vectors per residue or of several layers.
    """
    path = paths.place(path, "output")
    if path.suffix.lower() not in FORMATS:
        why = f"{path.suffix!r} is unknown" if path.suffix else "there is none"
        raise ValueError(
            f"output {path}: the file extension selects the format, but {why}. Choose "
            f"one of {', '.join(FORMATS)}."
        )
    kind = FORMATS[path.suffix.lower()].writer
    if (per_residue or several_layers) and kind is _Csv:
        hint = "Add --per-protein" if per_residue else "Choose one layer"
        raise ValueError(
            f"{path}: CSV holds one vector per protein. {hint}, or choose .h5, .npz, "
            ".parquet or .zarr."
        )
    if kind is _Parquet:
        import_parquet()
    if kind is zarr_folder.Writer:
        zarr_folder.import_zarr()
    return path


def create(path: pathlib.Path, metadata: Mapping[str, Any]) -> Writer:
    """A writer for the format of the path's extension."""
    return FORMATS[path.suffix.lower()].writer(path, metadata)


def to_json(content: Mapping[str, Any]) -> bytes:
    """Readable JSON."""
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
