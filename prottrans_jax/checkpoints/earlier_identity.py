"""Reads identities of runs of earlier versions.

They were flat: dotted names with printed values, and class names without quotes.
Learning-rate schedules were functions; their settings were printed under the names of
variables. Settings of how a model is computed stood in the model's configuration.

    "objective": "CausalLM"
    "objective.model": "TransformerXL"
    "objective.model.config.dtype": "dtype(bfloat16)"
    "optimizer.learning_rate": "inverse_sqrt.<locals>.schedule"
    "optimizer.learning_rate.peak": "0.01"
"""

import ast
from collections.abc import Mapping
import re
from typing import Any

from prottrans_jax import setting_trees

# Function that made a schedule -> class of today.
_SCHEDULES = {
    "by_factors": "ByFactors",
    "constant": "Constant",
    "inverse_sqrt": "InverseSqrt",
    "linear_warmup_linear_decay": "LinearWarmupLinearDecay",
}
# jnp.float32 and others were printed like class names.
_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64"})
# Fields of the models' configurations, whose class names end in "Config".
_COMPUTE = frozenset({"dtype", "param_dtype", "scan_layers"})
_CONFIG = "Config"
# Key of a node for its own printed value; no name is empty.
_TEXT = ""


def is_flat(identity: Mapping[str, Any]) -> bool:
    """Whether an identity has the form of earlier versions."""
    return all(isinstance(value, str) for value in identity.values())


def tree(flat: Mapping[str, str]) -> dict[str, Any]:
    """The tree that `run_identity.identity` makes of the same configuration.

    Settings of how a model is computed are left out. `scan_layers` changes array
    names; a restore casts to another `param_dtype`.

    >>> tree({"seed": "3", "rate": "constant.<locals>.<lambda>",
    ...       "rate.learning_rate": "0.1"})
    {'seed': 3, 'rate': {'type': 'Constant', 'learning_rate': 0.1}}
    """
    root: dict[str, Any] = {}
    for name, text in flat.items():
        node = root
        for part in name.split("."):
            node = node.setdefault(part, {})
        node[_TEXT] = text
    return _fields(root)


def compute_dtype(identity: Mapping[str, Any]) -> str | None:
    """Type of the model's activations in an earlier identity; None if there is none."""
    if is_flat(identity):
        for name, text in identity.items():
            parent, _, field = name.rpartition(".")
            if field == "dtype" and identity.get(parent, "").endswith(_CONFIG):
                return _value({_TEXT: text})
    return None


def _fields(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(child) for name, child in node.items() if name != _TEXT}


def _value(node: Mapping[str, Any]) -> Any:
    """The value of a name, with the names below it."""
    fields = _fields(node)
    if _TEXT not in node:
        return fields
    text = node[_TEXT]
    if not fields:
        if match := re.fullmatch(r"dtype\('?(\w+)'?\)", text):
            return match[1]
        try:
            return _with_lists(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            pass
        if text in _DTYPES:
            return text
    class_name = _SCHEDULES.get(text.partition(".<locals>.")[0], text)
    if "table" in fields:
        fields = _by_factors(**fields)
    if text.endswith(_CONFIG):
        fields = {n: value for n, value in fields.items() if n not in _COMPUTE}
    return {setting_trees.TYPE: class_name, **fields}


def _by_factors(
    names: list[str], table: Mapping[str, Mapping[str, Any]], **fields: Any
) -> dict[str, Any]:
    """Settings of `ByFactors`; each function of the table has some of them."""
    for function in table.values():
        fields |= function
    warmup_steps = fields.pop("w")
    return {**fields, "factors": " * ".join(names), "warmup_steps": warmup_steps}


def _with_lists(value: object) -> Any:
    if isinstance(value, list | tuple):
        return [_with_lists(item) for item in value]
    return value
