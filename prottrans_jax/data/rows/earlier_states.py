"""Reads states of loaders of earlier versions.

Up to version 1 the corruption of a task was the text that Python prints for it, some
under other class names:

    "objective": "MaskedLM(noise_density=0.15, mask_probability=0.8, ...)"
"""

import ast
from collections.abc import Mapping
from typing import Any

from prottrans_jax import setting_trees

# Class of a corruption then -> class of today.
_CLASSES = {
    "MaskedLM": "TokenMasking",
    "PermutationLM": "PermutationTargets",
    "CausalLM": "NextToken",
}


def with_trees(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of version 1 with its corruptions as `loader_states.of` saves them.

    Raises:
      ValueError: The text of a corruption is not a class name with plain values.
    """
    components = [
        {**component, "objective": _tree(component["objective"])}
        for component in state.get("components", [])
    ]
    return {**state, "components": components}


def _tree(text: str) -> dict[str, Any]:
    """The tree of a printed dataclass.

    >>> _tree("CausalLM()")
    {'type': 'NextToken'}
    """
    # The name of a class inside a function is not Python: "make.<locals>.Custom".
    name, _, arguments = text.partition("(")
    class_name = name.rpartition(".")[2]
    try:
        fields = _keywords(ast.parse(f"dict({arguments}", mode="eval").body)
    except (SyntaxError, ValueError) as e:
        raise ValueError(
            f"the saved state of the loader has the corruption {text!r}, which is not "
            "a class name with plain values: it cannot be compared with this run's. "
            "Start in a new folder."
        ) from e
    return {setting_trees.TYPE: _CLASSES.get(class_name, class_name), **fields}


def _keywords(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
