"""Learning rates as functions of the step, named as in the papers.

Each function returns `step -> learning rate`. Steps count from 0, as in T5X and BERT: a
linear warm-up gives 0 at the first step and `peak` at step `warmup_steps`.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prottrans_jax.config import setting_types

Step = Any  # A Python int or an int32 scalar array.
Schedule = Callable[[Step], Float[Array, ""]]


def constant(learning_rate: float) -> Schedule:
    """The same learning rate at every step."""
    setting_types.check_range("constant.learning_rate", learning_rate)
    return lambda step: jnp.float32(learning_rate)


def inverse_sqrt(
    peak: float, warmup_steps: int, warmup: str = "hold", first_step: int = 0
) -> Schedule:
    """Decays as 1/sqrt(step) from step `warmup_steps` on.

    T5's pre-training is peak 0.01, warmup_steps 10,000, "hold": 1/sqrt(max(step, 1e4))
    (Raffel et al. 2020, section 3.1.2).

    Args:
      peak: Highest learning rate, at step `warmup_steps`.
      warmup_steps: End of the warm-up, at least 1.
      warmup: Before that, "hold" keeps `peak` and "linear" rises from 0.
      first_step: Number of steps of the run that this one continues.

    Raises:
      ValueError: Unknown `warmup`, negative `peak`, or fewer than 1 warm-up steps.
    """
    if warmup not in ("hold", "linear"):
        raise ValueError(f"warmup={warmup!r} is not known. Use 'hold' or 'linear'.")
    setting_types.check_range("inverse_sqrt.peak", peak)
    setting_types.check_range("inverse_sqrt.warmup_steps", warmup_steps, 1)

    def schedule(step: Step) -> Array:
        step = jnp.asarray(step, jnp.float32) + first_step
        rate = peak * jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
        if warmup == "linear":
            rate = rate * jnp.minimum(1.0, step / warmup_steps)
        return rate

    return schedule


def linear_warmup_linear_decay(
    peak: float, warmup_steps: int, total_steps: int
) -> Schedule:
    """Rises linearly to `peak`, then falls linearly to 0 at `total_steps`.

    As BERT, ALBERT, ELECTRA and XLNet were trained (Devlin et al. 2019, appendix A.2).

    Args:
      peak: Highest learning rate.
      warmup_steps: Step of the highest learning rate; 0: no warm-up.
      total_steps: From this step on the learning rate is 0.

    Raises:
      ValueError: `total_steps` does not exceed `warmup_steps`, or `peak` is negative.
    """
    setting_types.check_range("linear_warmup_linear_decay.peak", peak)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and less than "
            f"total_steps={total_steps}. Lower warmup_steps (in gin WARMUP_STEPS) or "
            "raise total_steps (TRAIN_STEPS)."
        )

    def schedule(step: Step) -> Array:
        step = jnp.asarray(step, jnp.float32)
        left = jnp.maximum(total_steps - step, 0.0) / (total_steps - warmup_steps)
        return peak * jnp.minimum(left, _rise(step, warmup_steps))

    return schedule


def by_factors(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20_000,
    steps_per_cycle: int = 100_000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Schedule:
    """Product of named factors: T5X's `create_learning_rate_scheduler`, same arguments.

    With s = max(0, step - step_offset) and w = warmup_steps:

        constant                base_learning_rate
        linear_warmup           min(1, s / w)
        linear_decay            base_learning_rate min(s / w, 1 + decay_factor (w - s))
        rsqrt_decay             1 / sqrt(max(s, w))
        rsqrt_normalized_decay  sqrt(w / max(s, w))
        decay_every             decay_factor ** (s // steps_per_decay)
        cosine_decay            (1 + cos(pi ((s - w) / steps_per_cycle mod 1))) / 2

    T5's pre-training uses "constant * rsqrt_decay", base_learning_rate 1, w 10,000.

    Args:
      factors: Names in the table, joined by "*".
      base_learning_rate: See the table.
      warmup_steps: See the table.
      decay_factor: See the table.
      steps_per_decay: See the table.
      steps_per_cycle: See the table.
      step_offset: Step at which the schedule starts.
      min_learning_rate: Lower limit of the learning rate.

    Raises:
      ValueError: A factor is unknown, the learning rate is negative, or a number of
        steps that a factor divides by is less than 1.
    """
    setting_types.check_range("by_factors.base_learning_rate", base_learning_rate)
    w = warmup_steps

    def cosine(s: Array) -> Array:
        cycles = jnp.maximum(0.0, (s - w) / steps_per_cycle)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0)))

    table: dict[str, Callable[[Array], Any]] = {
        "constant": lambda s: base_learning_rate,
        "linear_warmup": lambda s: jnp.minimum(1.0, s / w),
        "linear_decay": lambda s: (
            base_learning_rate * jnp.minimum(s / w, 1.0 + decay_factor * (w - s))
        ),
        "rsqrt_decay": lambda s: jax.lax.rsqrt(jnp.maximum(s, w)),
        "rsqrt_normalized_decay": lambda s: jnp.sqrt(w / jnp.maximum(s, w)),
        "decay_every": lambda s: decay_factor ** (s // steps_per_decay),
        "cosine_decay": cosine,
    }
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in table:
            raise ValueError(
                f"Unknown factor {name!r} in factors={factors!r}. "
                f"There are: {', '.join(table)}."
            )
    if set(names) - {"constant", "decay_every", "cosine_decay"}:
        setting_types.check_range("by_factors.warmup_steps", warmup_steps, 1)
    if "decay_every" in names:
        setting_types.check_range("by_factors.steps_per_decay", steps_per_decay, 1)
    if "cosine_decay" in names:
        setting_types.check_range("by_factors.steps_per_cycle", steps_per_cycle, 1)

    def schedule(step: Step) -> Array:
        s = jnp.maximum(jnp.asarray(step, jnp.float32) - step_offset, 0.0)
        rate = functools.reduce(
            lambda product, name: product * table[name](s), names, 1.0
        )
        return jnp.maximum(jnp.float32(rate), min_learning_rate)

    return schedule


def _rise(step: Array, warmup_steps: int) -> Array | float:
    return step / warmup_steps if warmup_steps else 1.0
