"""What the configurations of all families do with their fields."""

from typing import Any

import jax.numpy as jnp

ATTENTION = ("plain", "blockwise")


def settle(config: Any, **choices: tuple[str, ...]) -> None:
    """Gives a frozen configuration's types one form and checks its choices.

    Args:
      config: Has `dtype` and `param_dtype`; gin binds strings, and a frozen
        configuration must hash and compare.
      **choices: What each of these fields, or each item of a tuple, may be.

    Raises:
      ValueError: A field is something else, or a rate or count is out of bounds.
    """
    for name in ("dtype", "param_dtype"):
        object.__setattr__(config, name, jnp.dtype(getattr(config, name)))
    for name in ("dropout_rate", "attention_dropout_rate"):
        rate = getattr(config, name, 0.0)
        if not 0 <= rate < 1:
            raise ValueError(
                f"{type(config).__name__}.{name}={rate}: must be 0 or more, below 1."
            )
    if getattr(config, "num_heads", 1) < 1:
        raise ValueError(f"{type(config).__name__}.num_heads: must be at least 1.")
    for field, known in choices.items():
        values = getattr(config, field)
        for value in values if isinstance(values, tuple) else (values,):
            if value not in known:
                raise ValueError(
                    f"{type(config).__name__}.{field}={value!r} is not known. Choose "
                    f"one of {', '.join(known)}."
                )
