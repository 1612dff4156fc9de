"""T5X's checkpoints: reads every generation, writes the third.

  v2, v3      checkpoint_N/checkpoint, msgpack: {version, optimizer: {target, state}}. A
              leaf is an array, or the path of a zarr folder beside the file.
  Orbax zarr  checkpoint_N/state/checkpoint, msgpack with names of zarr folders beside
              it; later versions have `_METADATA` instead
  Orbax OCDBT checkpoint_N/state/{_METADATA, manifest.ocdbt, ...}

Names and shapes of parameters are ours (`t5_names` for those of scanned layers). A
missing chunk is an error, not zeros: the save was interrupted.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import pathlib
import re
from types import ModuleType
from typing import Any

from flax import serialization, traverse_util
import ml_dtypes
import numpy as np

from prottrans_jax import types
from prottrans_jax.files import casting, json_text, memory_map, paths, writing
from prottrans_jax.interop import (
    families,
    flax_msgpack,
    layer_stacks,
    side_notes,
    t5_names,
)
from prottrans_jax.models import t5
from prottrans_jax.proteins import vocabulary

_PLACEHOLDER = "PLACEHOLDER://"
_STEP = re.compile(r"checkpoint_(\d+)")
# T5X factors Adafactor's second moment if both dimensions are at least this large.
_MIN_SIZE_TO_FACTOR = 128
# Adafactor's arrays of a parameter.
SLOTS = ("m", "v", "v_row", "v_col")
# Shape of the placeholder for a slot that a parameter lacks.
_UNUSED = (1,)
# Readers decompress whole chunks.
_MAX_CHUNK_BYTES = 1 << 27
_COMPRESSOR = {"id": "gzip", "level": 1}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that is read on demand.

    Attributes:
      shape: Its shape.
      dtype: Its type.
      read: Returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Contents of a checkpoint, under T5X's names with slashes.

    Attributes:
      generation: Name of the format.
      path: The file or folder of the step.
      step: Number of optimizer steps; None if it is not stored.
      params: The model's parameters.
      optimizer: The optimizer's state, `step` included; empty without one.
    """

    generation: str
    path: pathlib.Path
    step: int | None
    params: Mapping[str, StoredArray]
    optimizer: Mapping[str, StoredArray]


def read(source: str | os.PathLike, **overrides: Any) -> families.Checkpoint:
    """Reads the model of a checkpoint.

    T5X stores no configuration: sizes follow from the shapes. Other settings
    (activation of the gate, epsilon, distances) come from `overrides`, else from the
    `side_notes` that `write` adds, else they are T5's defaults.

    Args:
      source: A step, or a folder of steps of which the newest is read.
      **overrides: Fields of `T5Config` or of `ComputeConfig`.

    Raises:
      FileNotFoundError, ValueError: There is no checkpoint, or it is damaged.
    """
    sizes, computing = families.split_overrides(t5.T5Config, overrides)
    contents = open_(source)
    stored = families.widest_dtype(contents.params.values())
    names = t5_names.Scanned.of(contents.params)
    notes = side_notes.read(contents.path / side_notes.NAME, overrides)
    try:
        flat: dict[str, np.ndarray] = {}
        for name, array in contents.params.items():
            flat.update(names.unstacked(name, array.read()))
        flat = t5_names.share_equal_biases(flat)
        config = t5_names.config_of(flat, **{**notes.settings, **sizes})
    except ValueError as error:
        raise ValueError(f"{contents.path}: {error}") from error
    compute = families.as_stored(stored, computing)
    params = layer_stacks.convert(
        traverse_util.unflatten_dict(flat, sep="/"),
        dtype=compute.param_dtype,
        stacked=compute.scan_layers,
    )
    layers = "unscanned" if names.axis is None else "scanned"
    state = "with" if contents.optimizer else "without"
    return families.Checkpoint(
        family=families.FAMILIES["t5"],
        config=config,
        compute=compute,
        params=params,
        stored_dtype=stored,
        source=contents.path,
        form=f"T5X {contents.generation}, {layers} layers, {state} optimizer state",
        attributes=notes._asdict() if notes.settings else {},
    )


def read_slots(contents: Contents) -> dict[str, dict[str, np.ndarray]]:
    """Adafactor's arrays v, v_row, v_col and m of each parameter, placeholders omitted.

    Rows have T5X's meaning; see `t5_names.renamed_slots`.

    Raises:
      ValueError: There is no optimizer state, or it is of scanned layers.
    """
    if not contents.optimizer or contents.step is None:
        raise ValueError(
            f"{contents.path} has no optimizer state, only parameters. Start from "
            "those, with INITIAL_CHECKPOINT_PATH."
        )
    if t5_names.Scanned.of(contents.params).axis is not None:
        raise ValueError(
            f"{contents.path} has the optimizer state of scanned layers (scalable_t5), "
            "which is not converted."
        )
    slots: dict[str, dict[str, np.ndarray]] = {}
    prefix = "param_states/"
    for name, array in contents.optimizer.items():
        if name.startswith(prefix) and array.shape != _UNUSED:
            parameter, _, slot = name.removeprefix(prefix).rpartition("/")
            slots.setdefault(parameter, {})[slot] = array.read()
    return slots


def open_(source: str | os.PathLike) -> Contents:
    """Finds a checkpoint and lists its contents without reading arrays."""
    path = find(paths.local(source, "checkpoint"))
    if (path / "_METADATA").exists():
        return _open_metadata(path)
    if path.is_dir():
        tree = flax_msgpack.load(path / "checkpoint")
    else:
        tree = flax_msgpack.load(path)
        path = path.parent
    if not isinstance(tree, dict):
        raise ValueError(f"{path} does not hold a tree of parameters.")
    leaves = list(traverse_util.flatten_dict(tree, is_leaf=_is_leaf).values())
    if any(isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER) for leaf in leaves):
        generation, version = "Orbax zarr", None
    elif set(tree) == {"version", "optimizer"}:
        version = int(tree["version"])
        generation = f"v{version}"
        tree = tree["optimizer"]
    else:
        raise ValueError(
            f"{path} is msgpack, but with the keys {', '.join(map(str, tree))}: not a "
            "T5X checkpoint, which has version and optimizer, or Orbax's names."
        )

    def stored(name: str, leaf: object) -> StoredArray:
        if isinstance(leaf, str):
            return _zarr(path / leaf.removeprefix(_PLACEHOLDER), {})
        if isinstance(leaf, Mapping):
            return _zarr(path / _folder_of(leaf), leaf, version)
        array = _as_bfloat16(np.asarray(leaf), version)
        return StoredArray(array.shape, array.dtype, lambda: array)

    return _contents(generation, path, _flat(tree), stored)


def find(path: pathlib.Path) -> pathlib.Path:
    """The folder (or msgpack file) that holds the arrays of a step."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    for folder in (path / "state", path):
        if any((folder / name).is_file() for name in ("_METADATA", "checkpoint")):
            return folder
    steps = [
        (int(match[1]), child)
        for child in path.iterdir()
        if (match := _STEP.fullmatch(child.name))
    ]
    for _, step in sorted(steps, reverse=True):
        return find(step)
    raise FileNotFoundError(
        f"{path} has neither `checkpoint` nor `state`, nor folders checkpoint_N: not a "
        "T5X checkpoint, or one whose save was interrupted."
    )


def _contents(
    generation: str,
    path: pathlib.Path,
    tree: Mapping[str, Any],
    stored: Callable[[str, Any], StoredArray],
) -> Contents:
    arrays = {name: stored(name, leaf) for name, leaf in tree.items()}
    groups: dict[str, dict[str, StoredArray]] = {"target": {}, "state": {}}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if group in groups:
            groups[group][rest] = array
    steps = groups["state"].get("step") or arrays.get("step")
    step = None if steps is None else int(steps.read())
    if "state/param_states" not in tree and not any(
        name.startswith("param_states/") for name in groups["state"]
    ):
        groups["state"] = {}
    return Contents(generation, path, step, groups["target"], groups["state"])


def _is_leaf(_: object, node: object) -> bool:
    return isinstance(node, dict) and "driver" in node


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree, is_leaf=_is_leaf)
    return {"/".join(map(str, path)): leaf for path, leaf in flat.items()}


def _folder_of(spec: Mapping[str, Any]) -> str:
    """Name of the zarr folder beside the msgpack; the oldest files store `path` itself.

    The parent folders are dropped: they are those of the machine that wrote it.
    """
    return pathlib.PurePosixPath(spec.get("path") or spec["kvstore"]["path"]).name


def _as_bfloat16(array: np.ndarray, version: int | None) -> np.ndarray:
    if version == 2 and array.dtype == np.uint16:
        return array.view(ml_dtypes.bfloat16)
    return array


def _zarr(
    folder: pathlib.Path, spec: Mapping[str, Any], version: int | None = None
) -> StoredArray:
    import tensorstore

    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: was a save or copy interrupted?")
    has_metadata = (folder / ".zarray").exists()
    if not has_metadata and "metadata" not in spec:
        raise ValueError(f"{folder} has no .zarray, which describes its array.")
    store: dict[str, Any] = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "fill_missing_data_reads": False,
    }
    if not has_metadata:
        # The msgpack holds the same metadata as the missing .zarray.
        store["metadata"] = {
            "zarr_format": 2,
            "shape": list(spec["metadata"]["shape"]),
            "chunks": list(spec["metadata"]["chunks"]),
            "compressor": spec["metadata"]["compressor"],
            "dtype": _zarr_dtype(spec["dtype"]),
            "fill_value": None,
            "filters": None,
            "order": "C",
            "dimension_separator": ".",
        }
    return _tensorstore(tensorstore, store, version, assume_metadata=not has_metadata)


def _zarr_dtype(name: str) -> str:
    return name if name == "bfloat16" else np.dtype(name).newbyteorder("<").str


def _tensorstore(
    tensorstore: ModuleType,
    store: Mapping[str, Any],
    version: int | None = None,
    **options: Any,
) -> StoredArray:
    array = tensorstore.open(store, open=True, read=True, **options).result()
    dtype = array.dtype.numpy_dtype
    if version == 2 and dtype == np.uint16:
        dtype = np.dtype(ml_dtypes.bfloat16)

    def read_array() -> np.ndarray:
        try:
            return _as_bfloat16(array.read().result(), version)
        except ValueError as error:
            path = store["kvstore"].get("path", "")
            raise ValueError(f"{path} cannot be read: {error}") from error

    return StoredArray(tuple(array.shape), dtype, read_array)


def _open_metadata(path: pathlib.Path) -> Contents:
    """Opens Orbax's current format, with names in `_METADATA`.

    Arrays are in one key-value store or, optionally, in a zarr folder each.
    """
    import tensorstore

    metadata = json_text.read_object(path / "_METADATA")
    if "tree_metadata" not in metadata:
        raise ValueError(f"{path / '_METADATA'} does not describe a tree of arrays.")
    one_store = (path / "manifest.ocdbt").exists()
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    tree = {}
    for entry in metadata["tree_metadata"].values():
        names = [key["key"] for key in entry["key_metadata"]]
        if entry["value_metadata"].get("skip_deserialize"):
            continue
        tree["/".join(names)] = ".".join(names)

    def stored(name: str, key: str) -> StoredArray:
        files = {"driver": "file", "path": f"{path}/"}
        if one_store:
            kvstore = {"driver": "ocdbt", "base": files, "path": f"{key}/"}
        else:
            kvstore = {"driver": "file", "path": f"{path / key}/"}
        store = {
            "driver": driver,
            "kvstore": kvstore,
            "fill_missing_data_reads": False,
        }
        try:
            return _tensorstore(tensorstore, store)
        except ValueError as error:
            raise ValueError(f"{path}: {name} cannot be opened: {error}") from error

    generation = "Orbax OCDBT" if one_store else "Orbax zarr"
    return _contents(generation, path, tree, stored)


def write(
    folder: str | os.PathLike,
    config: t5.T5Config,
    params: types.Params,
    *,
    dtype: np.typing.DTypeLike | None = None,
    step: int = 0,
    optimizer_state: bool = True,
    slots: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    scanned: bool = False,
    ids: vocabulary.Vocabulary | None = None,
    max_chunk_bytes: int = _MAX_CHUNK_BYTES,
) -> pathlib.Path:
    """Writes `folder/checkpoint_STEP` in generation v3, which all public readers open.

    Needs memory for one array besides `params`.

    Args:
      folder: Output folder, like T5X's MODEL_DIR.
      config: Configuration of the model.
      params: Its parameters.
      dtype: Type of the parameters in the files; None: unchanged.
      step: Number of the step.
      optimizer_state: Whether to add Adafactor's slots, which T5X's trainer needs to
        start from the checkpoint; converters do not.
      slots: Arrays v, v_row, v_col and m of each parameter, with T5X's meaning of rows
        (`t5_names.renamed_slots`); None: fresh ones. Not for `scanned`.
      scanned: Whether to stack layers as `scalable_t5` does, unlike `t5`. Each layer
        then gets a copy of the shared relative bias.
      ids: Vocabulary for `side_notes`; None: unknown.
      max_chunk_bytes: Largest chunk of an array, before compression.

    Returns:
      The folder of the step.

    Raises:
      FileExistsError: The step exists.
      ValueError: Both `slots` and `scanned` are given.
    """
    if slots is not None and scanned:
        raise ValueError("slots are of layers written out; scanned=True stacks them.")
    target = pathlib.Path(folder) / f"checkpoint_{step}"
    if target.exists():
        raise FileExistsError(f"{target} exists. Choose another folder.")
    with writing.new_folder(target) as temporary:
        layers = layer_stacks.unstack(params)
        flat = traverse_util.flatten_dict(layers, sep="/")
        arrays = t5_names.scanned(flat, config) if scanned else iter(flat.items())
        tree: dict[str, Any] = {}
        for name, array in _cast(arrays, dtype):
            dotted = f"target.{name.replace('/', '.')}"
            tree[f"target/{name}"] = _write_zarr(
                temporary, dotted, array, max_chunk_bytes
            )
            if optimizer_state:
                values = (
                    _fresh_slots(array.shape, scanned, name)
                    if slots is None
                    else _with_placeholders(slots[name])
                )
                for slot, value in values.items():
                    leaf: object = value
                    # T5X replicates v_row and v_col, and reads replicated arrays from
                    # the msgpack only.
                    if value.shape == array.shape:
                        key = f"state.param_states.{name.replace('/', '.')}.{slot}"
                        leaf = _write_zarr(temporary, key, value, max_chunk_bytes)
                    tree[f"state/param_states/{name}/{slot}"] = leaf
            memory_map.release(array)
        tree["state/step"] = np.asarray(step, np.int32)
        content = {
            "version": 3,
            "optimizer": traverse_util.unflatten_dict(tree, sep="/"),
        }
        side_notes.write(temporary / side_notes.NAME, config, ids)
        # Last: readers treat a folder without this file as incomplete.
        (temporary / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return target


def _cast(
    arrays: Iterator[tuple[str, np.ndarray]], dtype: np.typing.DTypeLike | None
) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in arrays:
        yield name, casting.cast(name, np.asarray(array), dtype)


def _write_zarr(
    folder: pathlib.Path, name: str, array: np.ndarray, max_chunk_bytes: int
) -> dict[str, Any]:
    """Writes one array; returns its entry in the msgpack."""
    import tensorstore

    chunks = _chunks(array, max_chunk_bytes)
    metadata = {
        "shape": list(array.shape),
        "chunks": chunks,
        "compressor": dict(_COMPRESSOR),
    }
    dtype = array.dtype.name
    store = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder / name}/"},
            "dtype": dtype,
            "metadata": metadata,
        },
        create=True,
    ).result()
    rows = chunks[0]
    for start in range(0, array.shape[0], rows):
        block = np.ascontiguousarray(array[start : start + rows])
        store[start : start + len(block)].write(block).result()
    return {
        "driver": "zarr",
        "dtype": dtype,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }


def _chunks(array: np.ndarray, max_chunk_bytes: int) -> list[int]:
    """Chunk shape: whole rows, up to `max_chunk_bytes`."""
    row_bytes = max(1, array.nbytes // max(1, array.shape[0]))
    rows = min(array.shape[0], max(1, max_chunk_bytes // row_bytes))
    return [rows, *array.shape[1:]]


def _fresh_slots(
    shape: tuple[int, ...], scanned: bool, name: str
) -> dict[str, np.ndarray]:
    """Adafactor's slots at step 0; unused ones have shape (1,)."""
    factored = t5_names.factored_shapes(shape, scanned, name, _MIN_SIZE_TO_FACTOR)
    shapes = (
        {"v": shape}
        if factored is None
        else dict(zip(("v_row", "v_col"), factored, strict=True))
    )
    return _with_placeholders(
        {slot: np.zeros(size, np.float32) for slot, size in shapes.items()}
    )


def _with_placeholders(slots: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The slots of a parameter, with a placeholder for each that it lacks."""
    return {slot: np.zeros(_UNUSED, np.float32) for slot in SLOTS} | dict(slots)
