"""What the configurations of all families do with their fields."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from prottrans_jax.config import setting_types

ATTENTION = ("plain", "blockwise")
# Sizes of what a model may be without; all others are 1 or more.
_MAY_BE_0 = frozenset(
    {
        "num_decoder_layers",
        "num_token_types",
        "mem_length",
        "reuse_length",
        "clamp_length",
    }
)
_RATES = frozenset({"dropout_rate", "attention_dropout_rate"})


def settle(config: Any, **choices: tuple[str, ...]) -> None:
    """Gives a frozen configuration's types one form and checks its choices.

    Args:
      config: Has `dtype` and `param_dtype`; gin binds strings, and a frozen
        configuration must hash and compare.
      **choices: What each of these fields, or each item of a tuple, may be.

    Raises:
      ValueError: A field is something else, or a number is out of range.
    """
    for name in ("dtype", "param_dtype"):
        object.__setattr__(config, name, jnp.dtype(getattr(config, name)))
    check_numbers(config)
    for field, known in choices.items():
        values = getattr(config, field)
        for value in values if isinstance(values, tuple) else (values,):
            if value not in known:
                raise ValueError(
                    f"{type(config).__name__}.{field}={value!r} is not known. Choose "
                    f"one of {', '.join(known)}."
                )


def check_numbers(config: Any) -> None:
    """Raises ValueError unless the sizes, rates and constants of a model can be had."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        where = f"{type(config).__name__}.{name}"
        if name in _RATES:
            setting_types.check_range(where, value, below=1)
        elif field.type in (int, int | None):
            setting_types.check_range(where, value, 0 if name in _MAY_BE_0 else 1)
        elif field.type is float:
            setting_types.check_range(where, value)
