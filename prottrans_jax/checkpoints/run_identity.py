"""The configuration that identifies a run."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

# How a model is computed: a run may resume with other settings.
_COMPUTE = "compute"
# Earlier versions had these in the model's configuration. Another `param_dtype` or
# `scan_layers` shows in the arrays.
_FORMERLY_COMPARED = ("dtype", "param_dtype", "scan_layers")


def identity(**parts: Any) -> dict[str, str]:
    """Flattens configuration objects to dotted names and printed values.

    >>> identity(seed=3, model={"d_model": 4})
    {'seed': '3', 'model.d_model': '4'}
    """
    flat: dict[str, str] = {}
    for name, value in parts.items():
        _flatten(name, value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, str]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat[name] = type(value).__name__
        for field in dataclasses.fields(value):
            # Linen adds parent and name to a module's fields.
            if field.name in (_COMPUTE, "parent", "name"):
                continue
            content = getattr(value, field.name)
            # Earlier versions had no such field and behaved as the default does.
            if field.metadata.get("omit_default") and content == field.default:
                continue
            _flatten(f"{name}.{field.name}", content, flat)
    elif isinstance(value, functools.partial):
        _flatten(name, value.func, flat)
        for index, argument in enumerate(value.args):
            _flatten(f"{name}.{index}", argument, flat)
        _flatten(name, value.keywords, flat)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, flat)
    elif callable(value):
        flat[name] = getattr(value, "__qualname__", type(value).__name__)
        # A schedule is a closure; its settings are in the closure's cells.
        names = value.__code__.co_freevars if hasattr(value, "__code__") else ()
        for variable, cell in zip(
            names, getattr(value, "__closure__", None) or (), strict=True
        ):
            _flatten(f"{name}.{variable}", cell.cell_contents, flat)
    else:
        flat[name] = repr(value)


def of_checkpoint(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The identity in the metadata of a checkpoint, of earlier versions too."""
    saved = metadata.get("identity", {})
    return {
        name: value
        for name, value in saved.items()
        if not (
            (parts := name.rpartition("."))[2] in _FORMERLY_COMPARED
            and saved.get(parts[0], "").endswith("Config")
        )
    }
