"""Reads and writes safetensors files with numpy.

The format: the header's size in 8 bytes, little-endian; the header, JSON {name: {dtype,
shape, data_offsets}}; then the arrays' bytes in C order.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np

from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import casting, json_text, memory_map, writing

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


# The same limit as in Hugging Face's library.
MAX_HEADER_BYTES = 100_000_000


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays of a file by name, as views of the mapped file.

    Raises:
      ValueError: The header is larger than `MAX_HEADER_BYTES` or is not that of the
        format; or arrays overlap, leave bytes between them, or reach beyond the file.
    """
    path = pathlib.Path(path)
    data = memory_map.map_file(path)
    if data.size < 8:
        raise ValueError(f"{path}: {data.size} bytes; not a safetensors file.")
    header_size = int(data[:8].view("<u8")[0])
    if header_size > min(MAX_HEADER_BYTES, data.size - 8):
        raise ValueError(
            f"{path}: header of {header_size} bytes in a file of {data.size}, the "
            f"limit is {MAX_HEADER_BYTES}: truncated, or not a safetensors file."
        )
    try:
        header = json_text.parse(data[8 : 8 + header_size].tobytes())
        header.pop("__metadata__", None)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: the header is not a JSON object: {error}."
        ) from error
    data = data[8 + header_size :]
    arrays, places = {}, []
    for name, entry in header.items():
        code, shape, start, stop = _fields(path, name, entry)
        if code not in _DTYPES:
            raise ValueError(f"{path}: {name} has type {code}, which is not supported.")
        dtype = _DTYPES[code]
        num_bytes = math.prod(shape) * dtype.itemsize
        if not start <= stop <= data.size or stop - start != num_bytes:
            raise ValueError(
                f"{path}: {name} {shape} needs {num_bytes} bytes, but has bytes "
                f"{start} to {stop} of {data.size}. Is the download complete?"
            )
        arrays[name] = data[start:stop].view(dtype).reshape(shape)
        places.append((start, stop, name))
    _refuse_overlaps(path, places, data.size)
    return arrays


def _fields(path, name, entry) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first and last byte of an array, from its entry in the header."""
    try:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        start, stop = offsets
        numbers_are_sizes = all(type(x) is int and x >= 0 for x in (*shape, *offsets))
    except (KeyError, TypeError, ValueError):
        numbers_are_sizes = False
    if not (numbers_are_sizes and isinstance(code, str)):
        raise ValueError(
            f"{path}: the header's entry of {name} does not hold dtype, shape and "
            "data_offsets: damaged, or not a safetensors file."
        )
    return code, tuple(shape), start, stop


def _refuse_overlaps(path, places: list[tuple[int, int, str]], size: int) -> None:
    """Raises unless the arrays fill the file one after another, as the format says."""
    at = 0
    for start, stop, name in sorted(places):
        if start != at:
            raise ValueError(
                f"{path}: {name} begins at byte {start}, the array before it ends at "
                f"{at}: damaged, or made to mislead. Write it again with the "
                "safetensors library."
            )
        at = stop
    if at != size:
        raise ValueError(
            f"{path}: {size - at} bytes follow the last array: damaged, or made to "
            "mislead. Write it again with the safetensors library."
        )


def save(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    dtype: np.typing.DTypeLike | None = None,
) -> None:
    """Writes named arrays in the form that Hugging Face's readers expect.

    Arrays are converted one at a time, so that memory holds one copy only.

    Args:
      path: The file; it appears once it is complete.
      arrays: Arrays by name; may be views of mapped files.
      dtype: Type of all floating-point arrays in the file; None: unchanged.

    Raises:
      ValueError: A value is too large for `dtype`.
    """
    stored = {
        name: casting.stored_dtype(array, dtype) for name, array in arrays.items()
    }
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in arrays.items():
        num_bytes = array.size * stored[name].itemsize
        header[name] = {
            "dtype": _CODES[stored[name]],
            "shape": array.shape,
            "data_offsets": (offset, offset + num_bytes),
        }
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of 8
    with writing.new_file(path) as temporary:
        with open(temporary, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, array in arrays.items():
                stop_signals.check()
                in_order = np.ascontiguousarray(casting.cast(name, array, dtype))
                file.write(in_order.reshape(-1).view(np.uint8).data)
                memory_map.release(array)
