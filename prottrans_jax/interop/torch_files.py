"""Reads tensors from torch.save files without torch and without running their code.

Such a file is a pickle, which may call any function that it names. This reader admits
only the few names that a state dict needs, replaces them by its own functions, and
refuses every other name before anything is called.

Two formats: zip (torch >= 1.6: the pickle `data.pkl`, and an uncompressed member for
each storage) and the older one (several pickles, then the storages). Storages are
memory-mapped.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import io
import math
import os
import pathlib
import pickle
import pickletools
from typing import IO, Any, NamedTuple, NoReturn
import zipfile

import ml_dtypes
import numpy as np

from prottrans_jax.files import memory_map

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# Keys under which Lightning and other training loops save the state dict.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
# Opcodes whose number is a size or an index in the memo.
_SIZES = frozenset({"BINPUT", "LONG_BINPUT", "PUT", "FRAME"})
# Local file header of a zip: up to its two length fields, at 26 and 28.
_ZIP_HEADER_BYTES = 30


class UnsafeFileError(ValueError):
    """The pickle names a function that no tensor needs. No code of it was run."""


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a state dict by name, as views of the mapped file.

    A training library's checkpoint may hold the state dict under a key of its own.

    Raises:
      UnsafeFileError: The pickle needs functions other than those of tensors.
      ValueError: The file is damaged, or does not hold a state dict.
    """
    content = load_tree(path)
    if isinstance(content, Mapping):
        content = _state_dict_in(content)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a state dict of tensors."
        )
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if others:
        raise ValueError(
            f"{path} is not a state dict; besides tensors it holds "
            f"{', '.join(others[:5])}{' ...' * (len(others) > 5)}."
        )
    return dict(content)


def _state_dict_in(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict of a training library's checkpoint; or `content` itself."""
    for key in _STATE_DICT_KEYS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    # Under another key, such as "net", if there is only one state dict.
    state_dicts = [value for value in content.values() if _is_state_dict(value)]
    return state_dicts[0] if len(state_dicts) == 1 else content


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(array, np.ndarray) for array in value.values())
    )


def load_tree(path: str | os.PathLike) -> Any:
    """The file's content: containers, numbers, text, and tensors as views.

    Raises:
      UnsafeFileError: The pickle needs other classes or functions.
      ValueError: The file is damaged.
    """
    path = pathlib.Path(path)
    read = _load_zip if zipfile.is_zipfile(path) else _load_legacy
    try:
        return read(path)
    except (OSError, UnsafeFileError, _Damaged):
        raise
    except Exception as error:
        # A malformed pickle can raise nearly any exception.
        raise _Damaged(
            f"{path}: not a torch.save file, or truncated ({type(error).__name__}: "
            f"{error})."
        ) from error


class _Damaged(ValueError):
    pass


class _Storage(NamedTuple):
    """The elements of one or more tensors; None while only sizes are collected."""

    data: np.ndarray | None


class _Name:
    """Replaces an admitted function. A pickle cannot set its attributes."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"attribute {name} of a function is set")


class _Type(_Name):
    """Replaces a storage class; never called."""

    __slots__ = ("dtype",)
    dtype: np.dtype

    def __init__(self, dtype: np.dtype):
        object.__setattr__(self, "dtype", dtype)

    def __call__(self, *args: Any) -> NoReturn:
        raise pickle.UnpicklingError("a storage class is called")


def _tensor(storage, offset, size, stride, *unused: Any) -> np.ndarray | None:
    """A tensor as a view of its storage; offset and stride count elements."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(f"a tensor over a {type(storage).__name__}")
    if storage.data is None:
        return None
    data, size, stride = storage.data, tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if not all(isinstance(x, int) and x >= 0 for x in numbers) or len(size) != len(
        stride
    ):
        raise pickle.UnpicklingError(f"a tensor of {size=}, {stride=}, {offset=}")
    if math.prod(size) == 0:
        return np.empty(size, data.dtype)
    if math.prod(size) > data.size:
        # With strides of 0 a small file could claim any number of elements.
        raise pickle.UnpicklingError(
            f"a tensor of {math.prod(size)} elements over a storage of {data.size}"
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= data.size:
        raise pickle.UnpicklingError(
            f"a tensor reaches element {last} of a storage of {data.size}"
        )
    strides = tuple(step * data.itemsize for step in stride)
    return np.ndarray(size, data.dtype, data, offset * data.itemsize, strides)


def _parameter(data: object, *unused: Any) -> Any:
    return data


def _admitted_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "Size"): _Name(tuple),
        ("torch._utils", "_rebuild_tensor"): _Name(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Name(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Name(_parameter),
    }
    for name, dtype in _STORAGES.items():
        # GPU tensors refer to storage classes in torch.cuda.
        for module in ("torch", "torch.cuda", "torch.storage"):
            names[module, name] = _Type(dtype)
    return names


class _Unpickler(pickle.Unpickler):
    """Builds containers and tensors; refuses every other name."""

    def __init__(
        self,
        file: IO[bytes],
        path: pathlib.Path,
        storage: Callable[..., _Storage] | None = None,
    ):
        super().__init__(file, encoding="utf-8")
        self._file = file
        self._path = path
        self._storage = storage
        self._names = _admitted_names()

    def load(self) -> Any:
        """The pickle's content; leaves the file at its end.

        Raises:
          pickle.UnpicklingError: An opcode asks for more memory than the file's size
            explains: `pickle` makes room for whatever number it reads.
        """
        start, limit = self._file.tell(), self._path.stat().st_size
        for opcode, argument, _ in pickletools.genops(self._file):
            if opcode.name in _SIZES and (argument or 0) > limit:
                raise pickle.UnpicklingError(
                    f"{opcode.name} {argument} in a file of {limit} bytes"
                )
        self._file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name; called by `pickle` for each name in the file."""
        if (module, name) not in self._names:
            raise UnsafeFileError(
                f"{self._path} asks for {module}.{name}, which is not needed to read "
                "tensors: it is not a plain state dict, or it was made to run code. "
                "No code was run. If you trust it, load it with torch and save its "
                "state dict again, preferably as safetensors."
            )
        return self._names[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        """The storage that a tensor refers to."""
        if self._storage is None or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        if not isinstance(pid[1], _Type):
            raise pickle.UnpicklingError(f"storage of type {pid[1]!r}")
        return self._storage(pid[1].dtype, *pid[2:])


def _load_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Damaged(
                f"{path} is a zip file with {len(pickles)} members named data.pkl; "
                "torch.save writes one."
            )
        root = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise _Damaged(f"{path} was written on a big-endian machine: unsupported.")
        if members[pickles[0]].compress_type != zipfile.ZIP_STORED:
            raise _Damaged(
                f"{path}: {pickles[0]} is compressed; torch never does that."
            )
        text = archive.read(pickles[0])
    content = memory_map.map_file(path)
    storages: dict[str, _Storage] = {}

    def storage(dtype, key, location, num_elements) -> _Storage:
        if key not in storages:
            info = members[f"{root}data/{key}"]
            data = _member_bytes(path, content, info)
            if data.size != num_elements * dtype.itemsize:
                raise _Damaged(
                    f"{path}: storage {key} has {data.size} bytes, not {num_elements} "
                    f"elements of {dtype}."
                )
            storages[key] = _Storage(data.view(dtype))
        return storages[key]

    return _Unpickler(io.BytesIO(text), path, storage).load()


def _member_bytes(
    path: pathlib.Path, content: np.ndarray, info: zipfile.ZipInfo
) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Damaged(f"{path}: {info.filename} is compressed; torch never does that.")
    # The central directory does not contain the length of the local header.
    header = content[info.header_offset :][:_ZIP_HEADER_BYTES].tobytes()
    names = int.from_bytes(header[26:28], "little")
    extra = int.from_bytes(header[28:30], "little")
    start = info.header_offset + _ZIP_HEADER_BYTES + names + extra
    if start + info.file_size > content.size:
        raise _Damaged(f"{path}: {info.filename} is truncated.")
    return content[start : start + info.file_size]


def _load_legacy(path: pathlib.Path) -> Any:
    content = memory_map.map_file(path)
    with open(path, "rb") as file:
        if _Unpickler(file, path).load() != _LEGACY_MAGIC:
            raise _Damaged(f"{path}: neither a zip file nor a torch.save file.")
        version = _Unpickler(file, path).load()
        if version != _LEGACY_VERSION:
            raise _Damaged(f"{path}: unsupported torch.save format {version!r}.")
        system = _Unpickler(file, path).load()
        if not system.get("little_endian", True):
            raise _Damaged(f"{path} was written on a big-endian machine: unsupported.")
        start = file.tell()
        # Two passes: the first collects the storages' sizes, as their bytes come last.
        sizes: dict[str, tuple[np.dtype, int]] = {}
        _Unpickler(file, path, lambda *pid: _note_size(sizes, *pid)).load()
        keys = _Unpickler(file, path).load()
        position = file.tell()
        storages = {}
        for key in keys:
            dtype, num_elements = sizes[key]
            stop = position + 8 + num_elements * dtype.itemsize
            stored = int.from_bytes(content[position:][:8].tobytes(), "little")
            if stop > content.size or stored != num_elements:
                raise _Damaged(f"{path}: storage {key} is truncated or of wrong size.")
            storages[key] = content[position + 8 : stop].view(dtype)
            position = stop
        file.seek(start)
        return _Unpickler(file, path, lambda *pid: _legacy_view(storages, *pid)).load()


def _note_size(sizes, dtype, key, location, num_elements, view=None) -> _Storage:
    sizes[key] = dtype, num_elements
    return _Storage(None)


def _legacy_view(storages, dtype, key, location, num_elements, view=None) -> _Storage:
    data = storages[key]
    if view is not None:
        _, offset, size = view
        data = data[offset : offset + size]
    return _Storage(data)
