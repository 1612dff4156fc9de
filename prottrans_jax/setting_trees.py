"""Settings of a run as a tree of names and plain values, which JSON can hold."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import TypeAlias, TypeGuard

import numpy as np
from numpy.typing import DTypeLike

# A mapping with this key stands for an object of the class that it names.
TYPE = "type"

# What JSON can hold; a tuple is written as a list.
Tree: TypeAlias = (
    "Mapping[str, Tree] | Sequence[Tree] | str | int | float | bool | None"
)


def of(
    place: str,
    value: object,
    omit: Callable[[str, object], bool] = lambda name, content: False,
) -> Tree:
    """The tree of a configuration object.

    A dataclass becomes a mapping with its class name as "type", a dtype its name, a
    tuple a list. Numbers, text, True, False and None stay as they are.

    >>> of("schedule", schedules.Constant(0.1))
    {'type': 'Constant', 'learning_rate': 0.1}

    Args:
      place: Name of the object in errors.
      value: A dataclass, or another value of those above.
      omit: Whether to leave out a field, by its name and content.

    Raises:
      ValueError: There is another value, such as a function; names its place.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree: dict[str, Tree] = {TYPE: type(value).__name__}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if omit(field.name, content):
                continue
            # Earlier versions had no such field and behaved as the default does.
            if field.metadata.get("omit_default") and content == field.default:
                continue
            tree[field.name] = of(f"{place}.{field.name}", content, omit)
        return tree
    if isinstance(value, Mapping):
        return {str(k): of(f"{place}.{k}", item, omit) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [of(f"{place}.{index}", item, omit) for index, item in enumerate(value)]
    if _is_dtype(value):
        return np.dtype(value).name
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{place}={value!r}: a run cannot be recognised by this value when it resumes. "
        "Give a number, text, a list or a frozen dataclass; for a function a dataclass "
        "with __call__, such as optimizers.schedules.InverseSqrt."
    )


def _is_dtype(value: object) -> TypeGuard[DTypeLike]:
    # jnp.float32 is neither a dtype nor a class, but a function that has a dtype.
    return (
        isinstance(value, np.dtype)
        or (isinstance(value, type) and issubclass(value, np.generic))
        or (callable(value) and isinstance(getattr(value, "dtype", None), np.dtype))
    )
