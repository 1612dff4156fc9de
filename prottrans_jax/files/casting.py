"""Dtypes of arrays in files."""

import jax.numpy as jnp
import numpy as np


def stored_dtype(array: np.ndarray, dtype: np.typing.DTypeLike | None) -> np.dtype:
    """Dtype in which an array is stored: `dtype` for floating-point, else its own."""
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return array.dtype
    return np.dtype(dtype)


def cast(name: str, array: np.ndarray, dtype: np.typing.DTypeLike | None) -> np.ndarray:
    """The array in its stored dtype; see `stored_dtype`.

    Raises:
      ValueError: A value is too large for the dtype and would become infinite.
    """
    target = stored_dtype(array, dtype)
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(target)
    overflow = np.isinf(result) & np.isfinite(array)
    if overflow.any():
        limit = float(jnp.finfo(target).max)
        raise ValueError(
            f"{name} has {int(overflow.sum())} values too large for {target.name}, "
            f"such as {array[overflow][0]:.4g} (the limit is {limit:.4g}). "
            "Choose bfloat16 or float32."
        )
    return result
