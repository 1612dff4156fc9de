"""Stateless random bits: every draw is a hash of its seed and indices.

SplitMix64 (Steele, Lea & Flood 2014): output i of the generator with key k is
`mix(k + (i + 1) * GOLDEN)`, so every draw is computed independently, in any order and
on any host. Folding numbers into a key gives the key of another stream:
`fold(fold(seed, epoch), record)`. All arithmetic is modulo 2**64.
"""

import jaxtyping
import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)

Bits = jaxtyping.UInt64[np.ndarray, "..."]


def mix(x: Bits) -> Bits:
    """Finaliser of SplitMix64; overwrites and returns `x`, which must be an array."""
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= _MULTIPLY_1
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= _MULTIPLY_2
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted
    return x


def fold(key: Bits | np.uint64, value: int | np.ndarray) -> Bits:
    """64 bits from (`key`, `value`), used as random bits or as a derived key.

    The arguments broadcast, `value` is 0 or more; the result has at least one
    dimension.
    """
    key = np.atleast_1d(np.asarray(key).astype(np.uint64))
    counter = np.atleast_1d(np.asarray(value).astype(np.uint64)) + np.uint64(1)
    return mix(key + counter * GOLDEN)


def key(seed: int, *values: int) -> Bits:
    """Key of a named stream, [1]: the seed with each of `values` folded in."""
    result = fold(np.array([seed % 2**64], np.uint64), 0)
    for value in values:
        result = fold(result, value)
    return result


def below(bits: Bits, limit: int | np.ndarray) -> jaxtyping.Int64[np.ndarray, "..."]:
    """Uniform integers in [0, limit), limit < 2**32, from the upper 32 of the bits.

    The bias of the multiplication is below limit / 2**32.
    """
    upper = bits >> np.uint64(32)
    scaled = upper * np.asarray(limit).astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def threshold(probability: float) -> np.uint64:
    """Limit t for which `bits < t` holds with `probability` (below 1)."""
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"probability {probability} is not in [0, 1).")
    return np.uint64(int(probability * 2.0**64))
