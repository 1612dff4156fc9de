"""Checks of fields shared by the configurations of all families."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from prottrans_jax.config import setting_types

ATTENTION = ("plain", "blockwise")
# Sizes that may be 0; all others are at least 1.
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
    """Normalises the dtypes of a frozen configuration and checks its fields.

    Args:
      config: Has `dtype` and `param_dtype`. gin binds strings; as numpy dtypes, equal
        configurations compare and hash as equal.
      **choices: Allowed values of each of these fields, or of each item of a tuple.

    Raises:
      ValueError: A field has another value, or a number is out of range.
    """
    for name in ("dtype", "param_dtype"):
        object.__setattr__(config, name, jnp.dtype(getattr(config, name)))
    check_numbers(config)
    for field, allowed in choices.items():
        values = getattr(config, field)
        for value in values if isinstance(values, tuple) else (values,):
            if value not in allowed:
                raise ValueError(
                    f"{type(config).__name__}.{field}={value!r} is not known. Choose "
                    f"one of {', '.join(allowed)}."
                )


def check_numbers(config: Any) -> None:
    """Raises ValueError if a size, rate or constant of a model is out of range."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        where = f"{type(config).__name__}.{name}"
        if name in _RATES:
            setting_types.check_range(where, value, below=1)
        elif field.type in (int, int | None):
            setting_types.check_range(where, value, 0 if name in _MAY_BE_0 else 1)
        elif field.type is float:
            setting_types.check_range(where, value)
