"""Products, attention and norms on x86-64 CPUs that multiply bfloat16.

There are two units. The matrix unit (AMX, Intel Xeons from 2023 on) multiplies
bfloat16, and bytes at twice the rate. It is preferred to vectors (AVX-512, AMD
processors from 2022 on). XLA's bfloat16 products reach 1/2 to 4/5 of the speed of the
matrix unit, its attention 1/4 to 1/2; XLA's products reach 9/10 of the vectors' speed.

Vectors multiply float32 directly. The matrix unit multiplies float32 as integers of
three bytes (Ozaki, Ogita, Oishi and Rump 2012). A number of `x` is rounded so that its
contribution to the results is precise to 2^-24 of the largest contribution in its row;
a kernel is rounded to 2^-24 of the largest value of the column. Eight of the nine
products of bytes are summed exactly. Errors are at most those of a float32 sum, unless
values thousands of times larger than the rest of a row cancel. Rows and columns with
all values below about 1e-30 lose accuracy. Above 1e33 results may be Inf. An Inf or NaN
makes its whole row or column NaN.

Attention in float32 on the matrix unit splits each number into a sum of three bfloat16
and computes six of the nine products: XLA's `BF16_BF16_F32_X6`, which TPUs use for
float32 at the highest precision.

The kernels are compiled with the package (`x86_cc/`) and called through XLA's foreign
function interface. If they were not compiled, or the CPU has neither unit, XLA computes
everything; `route` says why.

They are for frozen models on one CPU device, within `frozen.scope`. They have no
gradients, and programs for other machines or `jax.export` do not contain them.
"""

from collections.abc import Sequence
import functools
import importlib
import platform
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num
import numpy as np

from prottrans_jax.kernels import cpu, distance_bias, frozen, x86_sources

# Sizes other than batch and length must be multiples of this: the rows of two tiles, or
# the columns of two vectors.
_BLOCK = 32
# How `x86_cc/` packs the left operand, by unit and type of the kernel: (most elements
# of a row at a time, bytes per element, multiple that the number of elements is padded
# to). 0 bytes: read in place, not copied.
_PACKING = {
    ("amx", "float32"): (1024, 3, 64),
    ("amx", "bfloat16"): (1024, 2, 32),
    ("amx", "int8"): (1024, 2, 32),
    ("avx512", "float32"): (1024, 0, 32),
    ("avx512", "bfloat16"): (2048, 0, 32),
    ("avx512", "int8"): (4096, 1, 64),
}
# Sums of so many products of bytes stay below 2^31.
_MOST_BYTES = 65536
# In the order of the enum in `x86_cc/elementwise.h`.
ACTIVATIONS = ("linear", "relu", "gelu_exact", "gelu", "silu")
_OPERANDS = {
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "int8"),
}


@functools.cache
def units() -> tuple[str, ...]:
    """Units that this machine has and this installation uses, "amx" first."""
    names, reason = _register()
    if reason:
        multiplies = {"amx_bf16", "avx512_bf16"} & (cpu.flags() or frozenset())
        log = logging.warning if multiplies else logging.info
        log("The compiled kernels for this CPU are off, which is slower: %s", reason)
    return names


def route() -> str:
    """How models run on this CPU, in one line for users."""
    names, reason = _register()
    if names:
        return f"compiled for {names[0]}"
    return f"XLA's: {reason or 'this CPU has neither AMX nor AVX-512 for bfloat16'}"


@functools.cache
def _register() -> tuple[tuple[str, ...], str]:
    """Registers the compiled kernels with XLA; their units, or why there are none."""
    try:
        compiled: Any = importlib.import_module("prottrans_jax.kernels._x86")
        sources = x86_sources.digest()
        if sources and getattr(compiled, "SOURCE_SHA256", None) != sources:
            raise ImportError(
                f"{compiled.__file__} was compiled from other sources than those in "
                f"{x86_sources.FOLDER}. Install the package again: pip install -e ."
            )
        handlers_by_unit = compiled.handlers()
        # Without it, errors of registration come late.
        jax.local_devices(backend="cpu")
        for unit, handlers in handlers_by_unit.items():
            for name, handler in handlers.items():
                target = f"prottrans_jax_{unit}_{name}"
                jax.ffi.register_ffi_target(target, handler, platform="cpu")
    except ModuleNotFoundError:
        return (), _why_not_compiled()
    except Exception as error:  # For another JAX, or another Python.
        return (), str(error)
    return tuple(handlers_by_unit), ""


def _why_not_compiled() -> str:
    machine = platform.system(), platform.machine()
    if machine != ("Linux", "x86_64"):
        return f"there are none for {' on '.join(machine)}, only for Linux on x86_64"
    return (
        "the package was installed without a C++ compiler that works. Install g++ and "
        "Python's headers, then the package again (pip install --force-reinstall "
        "--no-deps)"
    )


def is_usable() -> bool:
    """Whether this machine has any of the `units`."""
    return bool(units())


def rounds_to_int8() -> bool:
    """Whether `product` rounds the inputs of int8 kernels, as `quantized.product` does.

    True for vectors, which multiply bytes at twice the rate. The matrix unit keeps
    inputs in bfloat16. False also if there are no `units`.
    """
    return "avx512" in units()[:1]


def _call(
    name: str, shapes: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct]
) -> Any:
    return jax.ffi.ffi_call(f"prottrans_jax_{units()[0]}_{name}", shapes)


def is_enabled() -> bool:
    """Whether programs traced now may use these kernels on a CPU."""
    return frozen.is_active() and is_usable()


def real_rows(segments: Num[Array, "batch length"]) -> Int[Array, ""]:
    """Number of tokens up to the last real one; the segment of padding is 0."""
    numbers = jnp.arange(1, segments.size + 1)
    last = jnp.max(jnp.where(segments.reshape(-1) != 0, numbers, 0))
    return last.astype(jnp.int32)


def can_multiply(x: jax.Array, kernel: jax.Array, out_dtype: DTypeLike) -> bool:
    """Whether `product` accepts these arrays in the current context."""
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
      kernel: Type of `x`, or int8 with a bfloat16 `x`; see `can_multiply` and
        `rounds_to_int8`.
      out_dtype: Type of the result, bfloat16 or float32.
      scale: Scale of each column of an int8 `kernel`, float32.
      bias: Added in float32.
      activation: A name in `ACTIVATIONS`, applied in float32.
      real: Number of rows to compute; later rows are 0. None: all rows.
    """
    rows, inputs = x.shape
    outputs = kernel.shape[1]
    empty = jnp.zeros(0, jnp.float32)
    vectors = [empty if v is None else v.astype(jnp.float32) for v in (scale, bias)]
    number = np.int32(ACTIVATIONS.index(activation))
    shape = jax.ShapeDtypeStruct((rows, outputs), out_dtype)
    most, size, multiple = _PACKING[units()[0], kernel.dtype.name]
    row_bytes = size * (-(-min(inputs, most) // multiple) * multiple)
    whole_rows = -(-rows // _BLOCK) * _BLOCK
    # Buffers for the packed `x` and for partial sums: results, so that XLA manages
    # them.
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
    """Whether `norm` accepts these arrays in the current context."""
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
    """Layer norm, or root-mean-square norm if there is no bias.

    Args:
      epsilon: Added to the mean square.
      dtype: Type of the result, bfloat16 or float32.
      x: bfloat16 or float32; see `can_normalise`.
      scale: Factor of each feature after normalisation.
      bias: Added to the result. With a bias, the mean is subtracted first.
      addend: Added to `x` before normalisation, in float32; type and shape of `x`.
    """
    rows = x.reshape(-1, x.shape[-1])
    more = jnp.zeros((0, 0), x.dtype) if addend is None else addend.reshape(rows.shape)
    plus = jnp.zeros(0) if bias is None else bias
    vectors = [v.astype(jnp.float32) for v in (scale, plus)]
    call = _call("norm", jax.ShapeDtypeStruct(rows.shape, dtype))
    return call(rows, more, *vectors, epsilon=np.float32(epsilon)).reshape(x.shape)


def has_attention(dtype: DTypeLike, head_dim: int) -> bool:
    """Whether `attention` supports heads of this type and size."""
    has_type = jnp.dtype(dtype).name in ("bfloat16", "float32")
    return has_type and head_dim % _BLOCK == 0 and is_usable()


def can_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: distance_bias.DistanceBias | jax.Array | None,
) -> bool:
    """Whether `attention` accepts these arrays in the current context."""
    q_length, heads, head_dim = query.shape[1:]
    kv_length = key.shape[1]
    if isinstance(bias, distance_bias.DistanceBias):
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
    bias: distance_bias.DistanceBias
    | Float[Array, "rows heads q_length kv_length"]
    | None,
    q_segments: Int[Array, "batch q_length"],
    kv_segments: Int[Array, "batch kv_length"],
) -> Float[Array, "batch q_length heads head_dim"]:
    """softmax(query key^T + bias) value over the keys of each query's segment.

    Padding, and queries whose segment has no keys, get zeros.

    Each thread holds the float32 scores of a few queries of one head at a time. Except
    for a full `bias`, memory is linear in the length and in the number of threads.

    Args:
      query: bfloat16 or float32; see `can_attend`.
      key: As `query`.
      value: As `query`.
      bias: By distance, or an array for each row, or one for all rows (`rows` is 1).
      q_segments: Segment of each query, 0 for padding. The positions of a segment are
        contiguous.
      kv_segments: The same for keys.
    """
    wide = jnp.zeros((1, 0, 0, 0)) if bias is None else bias
    if isinstance(wide, distance_bias.DistanceBias):
        wide = wide.values[None, :, None]
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    call = _call(f"attention_{query.dtype}", shape)
    segments = (x.astype(jnp.int32) for x in (q_segments, kv_segments))
    return call(query, key, value, wide.astype(jnp.float32), *segments)
