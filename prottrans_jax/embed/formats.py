"""Reads, describes and reformats embedding files of every supported format."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import csv
import dataclasses
import itertools
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from prottrans_jax.distributed import stop_signals
from prottrans_jax.embed import damage, outputs, pooling, writers, zarr_folder
from prottrans_jax.embed import keys as keys_lib
from prottrans_jax.files import buckets, folders, json_text, paths, writing
from prottrans_jax.proteins import plurals

_HDF5 = (".h5", ".hdf5")


@dataclasses.dataclass(frozen=True)
class Description:
    """Summary of an embedding file.

    Attributes:
      proteins: Number of proteins.
      kind: "per residue", "per residue, several layers", "per protein", "per protein,
        several layers", "mixed", "other" or "empty".
      d_model: Sizes of vectors that occur.
      dtypes: Types that occur.
      residues: Total number of rows of vectors per residue.
      examples: Some keys.
      metadata: Attributes of the file and contents of OUTPUT.json.
    """

    proteins: int
    kind: str
    d_model: tuple[int, ...]
    dtypes: tuple[str, ...]
    residues: int
    examples: tuple[str, ...]
    metadata: Mapping[str, Any]


def entries(
    path: str | os.PathLike, *, select: Callable[[str], bool] = lambda key: True
) -> Iterator[writers.Entry]:
    """Reads the proteins of an embedding file, one at a time.

    Links, virtual datasets and external data of HDF5 are refused, and so are arrays
    that are much larger than what is stored of them; see `damage.check_array`. A file
    in a bucket is first copied to a temporary folder of this machine.

    Args:
      path: HDF5, npz, Parquet, Zarr, CSV or TSV.
      select: Returns True for keys to read.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, or its format is not supported.
    """
    place = paths.place(path, "path")
    reader = _READERS[_suffix(place)]
    with folders.local_copy(place) as copy:
        try:
            for entry in reader(copy, select):
                stop_signals.check()
                yield entry
        except (OSError, KeyError) as error:
            raise ValueError(f"{copy} is damaged: {error}") from error


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the path of an embedding file, or of a temporary copy if in a bucket.

    OUTPUT.json is copied, too.

    Raises:
      OSError: A request failed, or the copy does not fit on this machine's disk.
    """
    place = paths.place(path, "path")
    with folders.local_copy(place) as copy:
        beside = outputs.companion(place)
        if buckets.is_bucket(place) and beside.is_file():
            writing.write_synced(outputs.companion(copy), beside.read_bytes())
        yield copy


def keys(path: str | os.PathLike) -> Iterator[str]:
    """Keys of an embedding file; with HDF5 and npz the vectors are not read."""
    place = paths.place(path, "path")
    suffix = _suffix(place)
    if suffix in _HDF5:
        with folders.local_copy(place) as copy, open_hdf5(copy) as file:
            yield from file
    elif suffix == ".npz":
        with place.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            yield from file.files
    else:
        yield from (entry.key for entry in entries(path))


def open_hdf5(path: str | os.PathLike) -> Any:
    """Opens an HDF5 file for reading.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is a folder, is not readable, or is not an HDF5 file.
    """
    path = paths.local(path, "path")
    _check_exists(path)
    try:
        return writers.open_hdf5(path)
    except OSError as error:
        # HDF5's own message is too long for users.
        reason = "not an HDF5 file, or damaged"
        if error.errno:
            reason = os.strerror(error.errno)
        raise ValueError(f"{path}: {reason}.") from error


def _check_exists(path: paths.Place) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")


def _suffix(path: paths.Place) -> str:
    _check_exists(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(
            f"{path}: the file extension selects the format; it must be one of "
            f"{', '.join(_READERS)}."
        )
    return suffix


def metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Attributes of the file, with the contents of OUTPUT.json beside it."""
    path = paths.place(path, "path")
    about: dict[str, Any] = {}
    if path.suffix.lower() in _HDF5:
        with folders.local_copy(path) as copy, open_hdf5(copy) as file:
            about.update({key: _plain(value) for key, value in file.attrs.items()})
    beside = outputs.companion(path)
    if beside.is_file():
        about.update(json_text.read_object(beside))
    return about


def run_of(path: str | os.PathLike) -> Mapping[str, Any] | None:
    """Identity of the run that made the file, or None; see `Settings.identity`.

    HDF5 files store it in an attribute; for other formats it is in OUTPUT.json.
    """
    path = paths.place(path, "path")
    about = metadata(path)
    if path.suffix.lower() not in _HDF5:
        return about.get("run")
    identity = about.get(outputs.IDENTITY)
    return None if identity is None else json_text.parse(identity)


def is_per_protein(about: Mapping[str, Any]) -> bool | None:
    """Whether there is one vector per protein, from `metadata`; None if unknown."""
    if "pooling" in about:
        return about["pooling"] not in (None, "none")
    outputs = about.get("run", {}).get("outputs", ())
    return outputs[0] == "protein" if len(outputs) == 1 else None


def describe(path: str | os.PathLike) -> Description:
    """Summarises a file; reads all of it and verifies checksums."""
    number = residues = 0
    about = metadata(path)
    per_protein = is_per_protein(about)
    ndims, sizes, dtypes = set(), set(), set()
    examples: list[str] = []
    for entry in entries(path):
        number += 1
        ndims.add(entry.array.ndim)
        sizes.add(int(entry.array.shape[-1]))
        dtypes.add(entry.array.dtype.name)
        if entry.array.ndim > 1 and not per_protein:
            residues += entry.array.shape[-2]
        if len(examples) < 5:
            examples.append(entry.key)
    kinds = {1: "per protein", 2: "per residue", 3: "per residue, several layers"}
    if per_protein:
        kinds[2] = "per protein, several layers"
    kind = kinds.get(next(iter(ndims)), "other") if len(ndims) == 1 else "mixed"
    return Description(
        number,
        kind if number else "empty",
        tuple(sorted(sizes)),
        tuple(sorted(dtypes)),
        residues,
        tuple(examples),
        about,
    )


def reformat(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    pool: str | None = None,
) -> int:
    """Writes the proteins of a file in another format; returns their number.

    Args:
      source: A file that `entries` reads. Keys that would be paths are escaped.
      output: New file; its extension selects the format. OUTPUT.json is written beside
        it.
      pool: "mean" or "max" pools vectors per residue to vectors per protein.

    Raises:
      FileExistsError: The output exists.
      ValueError: The output's format cannot hold the vectors.
    """
    output = writers.check_path(output, per_residue=False)
    if folders.exists(output):
        raise FileExistsError(f"{output} exists. Choose another name.")
    outputs.refuse_foreign_companions(output)
    source = paths.place(source, "input")
    with local_copy(source) as copy:
        return _reformat(copy, source, output, pool)


def _reformat(
    copy: pathlib.Path, source: paths.Place, output: paths.Place, pool: str | None
) -> int:
    about = metadata(copy)
    output.parent.mkdir(parents=True, exist_ok=True)
    if is_per_protein(about):
        pool = None
    if pool is not None:
        # Pooled vectors lose the run's identity, so that no run resumes from them.
        about = {key: about[key] for key in about.keys() - {outputs.IDENTITY, "run"}}
        about["pooling"] = pool
    attributes = {
        key: value
        for key, value in about.items()
        if isinstance(value, str | int | float)
    }
    number = 0
    try:
        with writing.new_file(output) as temporary:
            writer = writers.create(temporary, attributes)
            try:
                for entry in entries(copy):
                    entry = entry._replace(key=keys_lib.safe(entry.key))
                    if pool is not None and entry.array.ndim > 1:
                        pooled = pooling.pool_protein(entry.array, pool)
                        entry = entry._replace(array=pooled)
                    writer.add(entry)
                    number += 1
            finally:
                writer.close()
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(output)) from error
        raise
    plain = str | int | float | list | dict | None
    about = {key: value for key, value in about.items() if isinstance(value, plain)}
    about["converted_from"] = os.fspath(source)
    writing.write_synced(outputs.companion(output), writers.to_json(about))
    return number


def _hdf5(path: pathlib.Path, select) -> Iterator[writers.Entry]:
    import h5py

    with open_hdf5(path) as file:
        for key in filter(select, file):
            if not isinstance(file.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{path}: {key} is a link, which is not followed.")
            dataset = file[key]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{path}: {key} is a group, not a protein's vectors.")
            if dataset.is_virtual or dataset.external or dataset.dtype.kind != "f":
                raise ValueError(
                    f"{path}: {key} is not a plain floating-point dataset."
                )
            part = f"the vectors of {key}"
            stored_bytes = dataset.id.get_storage_size()
            damage.check_array(path, part, dataset.shape, dataset.dtype, stored_bytes)
            attributes = dataset.attrs
            with damage.naming(path, part):
                array = dataset[()]
                entry = writers.Entry(
                    key,
                    str(attributes.get("original_id", key)),
                    str(attributes.get("description", "")),
                    int(attributes.get("length", len(array) if array.ndim > 1 else 0)),
                    str(attributes.get("sequence_sha256", "")),
                    array,
                    int(attributes.get("sequence_length", 0)),
                )
            yield entry


def _npz(path: pathlib.Path, select) -> Iterator[writers.Entry]:
    with damage.naming(path, "its list of proteins"):
        file = np.load(path, allow_pickle=False)
    with file:
        for key in filter(select, file.files):
            with damage.naming(path, f"the vectors of {key}"):
                header = _npy_header(file.zip, key)
            damage.check_array(path, f"the vectors of {key}", *header)
            with damage.naming(path, f"the vectors of {key}"):
                array = file[key]
            length = array.shape[-2] if array.ndim > 1 else 0
            yield writers.Entry(key, key, "", length, "", array)


def _npy_header(archive: zipfile.ZipFile, key: str) -> tuple[Any, np.dtype, int]:
    """Shape, type and stored bytes of an array in an npz file."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype, info.compress_size


def _parquet(path: pathlib.Path, select) -> Iterator[writers.Entry]:
    pq = writers.import_parquet()
    with damage.naming(path, "its footer"):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        for group in range(file.num_row_groups):
            _check_row_group(path, file.metadata.row_group(group), group)
            batches = file.iter_batches(batch_size=64, row_groups=[group])
            read = 0
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, ValueError) as error:
                    which = _unread_of_group(file, group, read)
                    raise damage.error_of(path, which, error) from error
                if batch is None:
                    break
                read += batch.num_rows
                with damage.naming(path, f"row group {group}"):
                    rows = list(_rows_of_parquet(batch, select))
                yield from rows


def _check_row_group(path: pathlib.Path, about: Any, group: int) -> None:
    """Refuses vectors that are much larger than what is stored of them."""
    columns = map(about.column, range(about.num_columns))
    for column in columns:
        if column.path_in_schema.split(".")[0] == "embedding":
            width = np.dtype(np.float64 if column.physical_type == "DOUBLE" else "f4")
            damage.check_array(
                path,
                f"the vectors of row group {group}",
                (column.num_values,),
                width,
                column.total_compressed_size,
            )


def _rows_of_parquet(batch: Any, select) -> Iterator[writers.Entry]:
    columns = {name: batch.column(name) for name in batch.schema.names}
    for row in range(batch.num_rows):
        if not select(columns["id"][row].as_py()):
            continue
        shape = columns["shape"][row].as_py()
        array = columns["embedding"][row].values.to_numpy().reshape(shape)
        yield writers.Entry(
            columns["id"][row].as_py(),
            columns["original_id"][row].as_py(),
            columns["description"][row].as_py(),
            columns["length"][row].as_py(),
            columns["sequence_sha256"][row].as_py(),
            array,
        )


def _unread_of_group(file: Any, group: int, read: int) -> str:
    """Describes the proteins of a row group after the first `read` ones, for errors."""
    number = file.metadata.row_group(group).num_rows - read
    proteins = plurals.count(number, "protein")
    try:
        ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()[read:]
        proteins += f" from {ids[0]} to {ids[-1]}" if number > 1 else f", {ids[0]}"
    except (OSError, ValueError):
        proteins += ", whose ids cannot be read either"
    return f"row group {group} of {file.num_row_groups}, counted from 0 ({proteins})"


def _zarr(path: pathlib.Path, select) -> Iterator[writers.Entry]:
    yield from itertools.starmap(writers.Entry, zarr_folder.read(path, select))


def _csv(path: pathlib.Path, select) -> Iterator[writers.Entry]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter=delimiter)
        with damage.naming(path, "its first line"):
            size = len(next(rows, [])) - 1
        while True:
            with damage.naming(path, f"line {rows.line_num + 1}"):
                row = next(rows, None)
            if row is None:
                return
            key, values = "".join(row[:1]), row[1:]
            if not select(key):
                continue
            with damage.naming(path, f"the vector of {key} in line {rows.line_num}"):
                if len(values) != size:
                    raise ValueError(f"{len(values)} numbers, the header has {size}")
                array = np.array(values, np.float32)
            yield writers.Entry(key, key, "", 0, "", array)


_READERS: dict[str, Callable[..., Iterator[writers.Entry]]] = {
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".npz": _npz,
    ".parquet": _parquet,
    ".zarr": _zarr,
    ".csv": _csv,
    ".tsv": _csv,
}


def _plain(value: object) -> Any:
    return value.item() if isinstance(value, np.generic) else value
