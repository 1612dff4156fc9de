"""Checks of fields shared by the configurations of all families."""

import dataclasses

from prottrans_jax import types
from prottrans_jax.config import setting_types

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


def check(config: types.ModelConfig, **choices: tuple[str, ...]) -> None:
    """Checks the fields of a configuration.

    Args:
      config: Configuration of a family.
      **choices: Allowed values of each of these fields, or of each item of a tuple.

    Raises:
      ValueError: A field has another value, or a number is out of range.
    """
    _check_numbers(config)
    for field, allowed in choices.items():
        setting_types.check_choice(
            f"{type(config).__name__}.{field}", getattr(config, field), allowed
        )


def _check_numbers(config: types.ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        where = f"{type(config).__name__}.{name}"
        if name in _RATES:
            setting_types.check_range(where, value, below=1)
        elif field.type in (int, int | None):
            setting_types.check_range(where, value, 0 if name in _MAY_BE_0 else 1)
        elif field.type is float:
            setting_types.check_range(where, value)
