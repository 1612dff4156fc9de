"""Recognises outputs of this program; no other files are ever replaced.

An output is recognised by its attributes (HDF5, Parquet, Zarr), or by OUTPUT.json
beside it (npz, CSV, TSV, and outputs of earlier versions).
"""

from collections.abc import Iterable
from typing import Any

from prottrans_jax.embed import writers, zarr_folder
from prottrans_jax.files import buckets, folders, json_text, ownership
from prottrans_jax.files import paths as places

# Attribute of an output: identity of the run that made it, as JSON.
IDENTITY = "prottrans_run"
_VERSION = "prottrans_version"
# A key of OUTPUT.json as written by `embed`, and by `reformat`.
_COMPANION_KEYS = ("run", "converted_from")


def companion(path: places.Place) -> places.Place:
    """Path of OUTPUT.json, which records how an output was made."""
    return path.with_name(path.name + ".json")


def skipped_list(path: places.Place) -> places.Place:
    """Path of OUTPUT.skipped.tsv, which names records that were left out or cut."""
    return path.with_name(path.name + ".skipped.tsv")


def written(output: places.Place, paths: Iterable[places.Place]) -> list[places.Place]:
    """Every file or folder that is written for an output, except OUTPUT.parts.

    Args:
      output: Output path as given by the user.
      paths: Files or folders with vectors.
    """
    paths = list(paths)
    return [*paths, *map(companion, paths), skipped_list(output)]


def refuse_foreign(output: places.Place, paths: Iterable[places.Place]) -> None:
    """Raises if an output would replace a file that this program did not make.

    Args:
      output: Output path as given by the user.
      paths: Files or folders that will be written for it.

    Raises:
      ownership.ForeignError: Names the file that is in the way; nothing is changed.
    """
    for path in paths:
        if folders.exists(path) and not _is_ours(path):
            what = "folder" if path.is_dir() else "file"
            raise ownership.ForeignError(
                f"{path} is a {what} that was not made by this program, so it is not "
                "replaced, even with --overwrite. Move or delete it, or choose another "
                "output."
            )
        refuse_foreign_companions(path)
    skipped = skipped_list(output)
    if folders.exists(skipped) and not _begins_with(skipped, b"id\t"):
        raise ownership.ForeignError(_in_the_way(skipped, "a list of skipped records"))


def refuse_foreign_companions(path: places.Place) -> None:
    """Raises if OUTPUT.json exists and was not written by this program.

    Raises:
      ownership.ForeignError: Names it.
    """
    beside = companion(path)
    if folders.exists(beside) and not _has_companion(path):
        raise ownership.ForeignError(
            _in_the_way(beside, f"the description of {path.name}")
        )


def _in_the_way(path: places.Place, what: str) -> str:
    return (
        f"{path} is in the way: it is the path of {what}, but this program did not "
        "make it. Move it, or choose another output."
    )


def _is_ours(path: places.Place) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".zarr":
        return path.is_dir() and _is_our_zarr(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if not file.read(1):  # An empty file.
            return True
    if not _begins_with(path, writers.FORMATS[suffix].first_bytes):
        return False
    return _has_companion(path) or bool({IDENTITY, _VERSION} & _attributes(path))


def _is_our_zarr(path: places.Place) -> bool:
    names = {entry.name for entry in path.iterdir()}
    if names - {zarr_folder.METADATA, *zarr_folder.ARRAYS}:
        return False
    if buckets.is_bucket(path) and zarr_folder.METADATA not in names:
        # Of an upload that was killed: the metadata come last.
        return _has_companion(path)
    group = _read_json(path / zarr_folder.METADATA)
    attributes = group.get("attributes")
    marked = isinstance(attributes, dict) and {IDENTITY, _VERSION} & attributes.keys()
    return not names or (bool(group) and bool(marked or _has_companion(path)))


def _has_companion(path: places.Place) -> bool:
    return any(key in _read_json(companion(path)) for key in _COMPANION_KEYS)


def _attributes(path: places.Place) -> set[str]:
    """Names of a file's attributes; empty if it is damaged."""
    try:
        if path.suffix.lower() == ".parquet":
            with path.open("rb") as file:
                schema = writers.import_parquet().read_schema(file)
            return {name.decode(errors="replace") for name in schema.metadata or {}}
        if path.suffix.lower() in (".h5", ".hdf5"):
            if not buckets.is_bucket(path):
                with writers.open_hdf5(path) as file:
                    return set(file.attrs)
            # Reads some kilobytes of the object.
            with path.open("rb") as stream, writers.open_hdf5(stream) as file:
                return set(file.attrs)
    except (OSError, ValueError):
        pass
    return set()


def _begins_with(path: places.Place, start: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        content = file.read(len(start))
    return content == start or not content


def _read_json(path: places.Place) -> dict[str, Any]:
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
