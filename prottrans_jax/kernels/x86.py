"""Products, attention and norms on x86-64 CPUs that multiply bfloat16.

One of two units is used: a matrix unit (AMX, Intel's Xeons from 2023 on), which
multiplies bfloat16, and bytes at twice the rate; or else vectors (AVX-512, AMD's
processors from 2022 on). XLA's own products in bfloat16 reach a half to four fifths of
the matrix unit's and its attention a quarter to a half; of vectors' products, nine
tenths.

With vectors, float32 is multiplied as such. With the matrix unit, products of float32
are products of whole numbers (Ozaki, Ogita, Oishi and Rump 2012): what a number adds to
the results is rounded to 2^-24 of the most that one of its row does, a kernel's to
2^-24 of its column's largest, and of their three bytes eight of nine products are
summed exactly. Errors are those of a sum in float32 or smaller, unless what is
thousands of times larger than the rest of a row happens to cancel. Rows and columns
whose largest is below some 1e-30 lose digits, results of those beyond 1e33 may be
infinite; where a number is infinite or none, its whole row or column is none.

With the matrix unit, attention's float32 is the sum of three bfloat16 numbers, and six
of nine products of such parts give its digits: XLA's `BF16_BF16_F32_X6`, which TPUs do
for float32 at the highest precision.

They are compiled with the package (`_x86.cc`) and called through XLA's foreign
function interface; where that was not possible, or the CPU has no such unit, XLA does
everything.

They are for frozen models that run on one CPU device, within `enabled`: nothing is
derived through them, and no programs of other machines or `jax.export` hold them.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import importlib
import pathlib
import threading
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num
import numpy as np

from prottrans_jax.kernels import cpu
from prottrans_jax.layers import relative_bias

# Sizes other than batch and length are multiples of the rows of two tiles, or the
# columns of two vectors.
_BLOCK = 32
# How `_x86.cc` lays out what is multiplied, by unit and type of the kernel: numbers of
# a row at a time, bytes of each, and what their number is a multiple of. What is read
# where it is has no bytes.
_LAID_OUT = {
    ("amx", "float32"): (1024, 3, 64),
    ("amx", "bfloat16"): (1024, 2, 32),
    ("amx", "int8"): (1024, 2, 32),
    ("avx512", "float32"): (1024, 0, 32),
    ("avx512", "bfloat16"): (2048, 0, 32),
    ("avx512", "int8"): (4096, 1, 64),
}
# Sums of so many bytes are below 2^31.
_MOST_BYTES = 65536
# In the order of `_x86.cc`.
_ACTIVATIONS = ("linear", "relu", "gelu_exact", "gelu", "silu")
_OPERANDS = {
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "int8"),
}
# In a checkout; an installed package has only what was compiled.
_SOURCE = pathlib.Path(__file__).with_name("_x86.cc")
_local = threading.local()


class Extent(NamedTuple):
    """Shape of a call's tokens, and how many there are up to the last real one."""

    shape: tuple[int, ...]
    real: Int[Array, ""]


def extent_of(segments: Num[Array, "batch length"]) -> Extent:
    """That of tokens of which the real ones have a segment that is not 0."""
    numbers = jnp.arange(1, segments.size + 1)
    last = jnp.max(jnp.where(segments.reshape(-1) != 0, numbers, 0))
    return Extent(segments.shape, last.astype(jnp.int32))


@functools.cache
def units() -> tuple[str, ...]:
    """What this machine has and this installation uses, "amx" before "avx512"."""
    try:
        compiled: Any = importlib.import_module("prottrans_jax.kernels._x86")
        if _SOURCE.exists():
            digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()
            if getattr(compiled, "SOURCE_SHA256", None) != digest:
                raise ImportError(
                    f"{compiled.__file__} was compiled from another {_SOURCE.name}. "
                    "Install the package again: pip install -e ."
                )
        found = compiled.handlers()
        jax.local_devices(backend="cpu")  # Or a refusal would come at some later time.
        for unit, handlers in found.items():
            for name, handler in handlers.items():
                target = f"prottrans_jax_{unit}_{name}"
                jax.ffi.register_ffi_target(target, handler, platform="cpu")
    except Exception as error:  # Not compiled, or for another JAX.
        multiplies = {"amx_bf16", "avx512_bf16"} & (cpu.flags() or frozenset())
        log = logging.warning if multiplies else logging.info
        log("Without our own products for this CPU, which is slower: %s", error)
        return ()
    return tuple(found)


def is_usable() -> bool:
    """Whether there is any of `units`."""
    return bool(units())


def rounds_to_int8() -> bool:
    """Whether `product` rounds what int8 kernels multiply, as `quantized.product`.

    By vectors, which multiply bytes at twice the rate. With the matrix unit it stays
    bfloat16. False also where there are no `units`.
    """
    return "avx512" in units()[:1]


def _call(name: str, shapes: Any) -> Any:
    return jax.ffi.ffi_call(f"prottrans_jax_{units()[0]}_{name}", shapes)


@contextlib.contextmanager
def enabled(extent: Extent | None = None) -> Iterator[None]:
    """Within, what is traced for a CPU may use these products, attention and norms.

    The caller sees to it that the positions of a segment are neighbours, and that what
    has the shape of `extent` is of its tokens.

    Args:
      extent: Layers compute nothing of the tokens behind the last real one, but give 0.
        None: all are real.
    """
    before = getattr(_local, "enabled", False), getattr(_local, "extent", None)
    _local.enabled, _local.extent = is_usable(), extent
    try:
        yield
    finally:
        _local.enabled, _local.extent = before


def is_enabled() -> bool:
    """Whether the caller is traced within `enabled`, and for one device."""
    one_device = jax.sharding.get_abstract_mesh().size <= 1
    return one_device and getattr(_local, "enabled", False)


def real_rows(shape: tuple[int, ...]) -> Int[Array, ""] | None:
    """How many rows are of real tokens; None: all, or the shape is not of tokens.

    Args:
      shape: [batch, length], without features.
    """
    extent = getattr(_local, "extent", None)
    return None if extent is None or extent.shape != shape else extent.real


def can_multiply(x: jax.Array, kernel: jax.Array, out_dtype: DTypeLike) -> bool:
    """Whether `product` takes these, here and now."""
    return (
        is_enabled()
        and x.ndim == kernel.ndim == 2
        and (x.dtype.name, kernel.dtype.name) in _OPERANDS
        and jnp.dtype(out_dtype).name in ("bfloat16", "float32")
        and all(isinstance(size, int) for size in (*x.shape, *kernel.shape))
        and all(size and size % _BLOCK == 0 for size in kernel.shape)
        and not (kernel.dtype == jnp.int8 and kernel.shape[0] > _MOST_BYTES)
    )


def product(
    x: Float[Array, "rows inputs"],
    kernel: Num[Array, "inputs outputs"],
    out_dtype: DTypeLike,
    *,
    scale: Float[Array, " outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    activation: str = "linear",
    real: Int[Array, ""] | None = None,
) -> Float[Array, "rows outputs"]:
    """activation(scale x kernel + bias), summed in float32 and rounded once.

    Args:
      x: bfloat16 or float32.
      kernel: As `x`, or int8 for bfloat16; see `can_multiply` and `rounds_to_int8`.
      out_dtype: Of the result, bfloat16 or float32.
      scale: Of each column of an int8 `kernel`, float32.
      bias: Added in float32.
      activation: By its name in `mlp.ACTIVATIONS`, applied in float32.
      real: Rows from this number on are not computed, but 0. None: all are.
    """
    rows, inputs = x.shape
    outputs = kernel.shape[1]
    none = jnp.zeros(0, jnp.float32)
    vectors = [none if v is None else v.astype(jnp.float32) for v in (scale, bias)]
    number = np.int32(_ACTIVATIONS.index(activation))
    shape = jax.ShapeDtypeStruct((rows, outputs), out_dtype)
    most, size, multiple = _LAID_OUT[units()[0], kernel.dtype.name]
    row_bytes = size * (-(-min(inputs, most) // multiple) * multiple)
    whole_rows = -(-rows // _BLOCK) * _BLOCK
    # Where `x` is laid out, if it is, and sums of parts: memory that XLA uses again.
    left = jax.ShapeDtypeStruct((whole_rows, row_bytes), jnp.uint8)
    sums = jax.ShapeDtypeStruct(
        (whole_rows if inputs > most else 0, outputs), jnp.float32
    )
    count = jnp.asarray(rows if real is None else real, jnp.int32)
    call = _call("product", (shape, left, sums))
    return call(x, kernel, *vectors, count, activation=number)[0]


def can_normalise(
    x: jax.Array, dtype: DTypeLike, addend: jax.Array | None = None
) -> bool:
    """Whether `norm` takes these, here and now."""
    kinds = {"bfloat16", "float32"}
    return (
        is_enabled()
        and {x.dtype.name, jnp.dtype(dtype).name} <= kinds
        and (addend is None or (addend.dtype, addend.shape) == (x.dtype, x.shape))
        and x.shape[-1] % _BLOCK == 0
    )


def norm(
    epsilon: float,
    dtype: DTypeLike,
    x: Float[Array, "*batch d_model"],
    scale: Float[Array, " d_model"],
    bias: Float[Array, " d_model"] | None = None,
    addend: Float[Array, "*batch d_model"] | None = None,
) -> Float[Array, "*batch d_model"]:
    """`norms.LayerNorm`, or `norms.RMSNorm` if there is no bias.

    Args:
      epsilon: Added to the mean square.
      dtype: Of the result, bfloat16 or float32.
      x: bfloat16 or float32; see `can_normalise`.
      scale: What the normalised is multiplied by.
      bias: Added to the result. If there is one, the mean is subtracted first.
      addend: Of `x`'s type and shape, added to it before all else, in float32.
    """
    rows = x.reshape(-1, x.shape[-1])
    more = jnp.zeros((0, 0), x.dtype) if addend is None else addend.reshape(rows.shape)
    plus = jnp.zeros(0) if bias is None else bias
    vectors = [v.astype(jnp.float32) for v in (scale, plus)]
    call = _call("norm", jax.ShapeDtypeStruct(rows.shape, dtype))
    return call(rows, more, *vectors, epsilon=np.float32(epsilon)).reshape(x.shape)


def has_attention(dtype: DTypeLike, head_dim: int) -> bool:
    """Whether `attention` is usable for such heads."""
    known = jnp.dtype(dtype).name in ("bfloat16", "float32")
    return known and head_dim % _BLOCK == 0 and is_usable()


def can_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: relative_bias.DistanceBias | jax.Array | None,
) -> bool:
    """Whether `attention` takes these, here and now."""
    q_length, heads, head_dim = query.shape[1:]
    kv_length = key.shape[1]
    if isinstance(bias, relative_bias.DistanceBias):
        distances = heads, q_length + kv_length - 1
        fits = bias.q_length == q_length and bias.values.shape == distances
    else:
        sizes = heads, q_length, kv_length
        fits = bias is None or (bias.ndim == 4 and bias.shape[1:] == sizes)
    return (
        is_enabled()
        and has_attention(query.dtype, head_dim)
        and query.dtype == key.dtype == value.dtype
        and key.shape == value.shape
        and fits
    )


def attention(
    query: Float[Array, "batch q_length heads head_dim"],
    key: Float[Array, "batch kv_length heads head_dim"],
    value: Float[Array, "batch kv_length heads head_dim"],
    bias: relative_bias.DistanceBias
    | Float[Array, "rows heads q_length kv_length"]
    | None,
    q_segments: Int[Array, "batch q_length"],
    kv_segments: Int[Array, "batch kv_length"],
) -> Float[Array, "batch q_length heads head_dim"]:
    """softmax(query key^T + bias) value over the keys of each query's segment.

    Zeros for padding, and for queries whose segment has no keys.

    Each thread has the scores of some queries of a head at a time, in float32: but for
    a full `bias`, memory grows with the length only, and with the threads.

    Args:
      query: bfloat16 or float32; see `can_attend`.
      key: As `query`.
      value: As `query`.
      bias: Of distances, or of each of the rows, or of all of them (`rows` is 1).
      q_segments: Segment of each query, 0 for padding. The positions of a segment are
        neighbours.
      kv_segments: The same of the keys.
    """
    wide = jnp.zeros((1, 0, 0, 0)) if bias is None else bias
    if isinstance(wide, relative_bias.DistanceBias):
        wide = wide.values[None, :, None]
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    call = _call(f"attention_{query.dtype}", shape)
    segments = (x.astype(jnp.int32) for x in (q_segments, kv_segments))
    return call(query, key, value, wide.astype(jnp.float32), *segments)
