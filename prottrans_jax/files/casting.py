"""Types of arrays on their way into files."""

import jax.numpy as jnp
import numpy as np


def stored_dtype(array: np.ndarray, dtype: np.typing.DTypeLike | None) -> np.dtype:
    """Type in which an array is stored: `dtype` if it is floating, else its own."""
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return array.dtype
    return np.dtype(dtype)


def cast(name: str, array: np.ndarray, dtype: np.typing.DTypeLike | None) -> np.ndarray:
    """The array in the type it is stored in.

    Raises:
      ValueError: A value is too large for the type and would become infinite.
    """
    wanted = stored_dtype(array, dtype)
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(wanted)
    lost = np.isinf(result) & np.isfinite(array)
    if lost.any():
        raise ValueError(
            f"{name} has {int(lost.sum())} values too large for {wanted.name}, such as "
            f"{array[lost][0]:.4g} (the limit is {float(jnp.finfo(wanted).max):.4g}). "
            "Choose bfloat16 or float32."
        )
    return result
