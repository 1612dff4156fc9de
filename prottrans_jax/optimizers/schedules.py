"""Learning rates as functions of the step, named as in the papers.

A schedule is called with the step. Steps count from 0, as in T5X and BERT: a linear
warm-up gives 0 at the first step and `peak` at step `warmup_steps`.

Schedules are frozen dataclasses, as their settings are part of the identity of a run.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from prottrans_jax.config import setting_types

Step = Any  # A Python int or an int32 scalar array.


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    learning_rate: float

    def __post_init__(self):
        setting_types.check_range("Constant.learning_rate", self.learning_rate)

    def __call__(self, step: Step) -> Array:
        """The learning rate."""
        del step
        return jnp.float32(self.learning_rate)


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """Decays as 1/sqrt(step) from step `warmup_steps` on.

    T5's pre-training is peak 0.01, warmup_steps 10,000, "hold": 1/sqrt(max(step, 1e4))
    (Raffel et al. 2020, section 3.1.2).

    Attributes:
      peak: Highest learning rate, at step `warmup_steps`.
      warmup_steps: End of the warm-up, at least 1.
      warmup: Before that, "hold" keeps `peak` and "linear" rises from 0.
      first_step: Number of steps of the run that this one continues.

    Raises:
      ValueError: Unknown `warmup`, negative `peak`, or fewer than 1 warm-up steps.
    """

    peak: float
    warmup_steps: int
    warmup: str = "hold"
    first_step: int = 0

    def __post_init__(self):
        if self.warmup not in ("hold", "linear"):
            raise ValueError(
                f"warmup={self.warmup!r} is not known. Use 'hold' or 'linear'."
            )
        setting_types.check_range("InverseSqrt.peak", self.peak)
        setting_types.check_range("InverseSqrt.warmup_steps", self.warmup_steps, 1)

    def __call__(self, step: Step) -> Array:
        """The learning rate of one step."""
        step = jnp.asarray(step, jnp.float32) + self.first_step
        rate = self.peak * jnp.sqrt(
            self.warmup_steps / jnp.maximum(step, self.warmup_steps)
        )
        if self.warmup == "linear":
            rate = rate * jnp.minimum(1.0, step / self.warmup_steps)
        return rate


@dataclasses.dataclass(frozen=True)
class LinearWarmupLinearDecay:
    """Rises linearly to `peak`, then falls linearly to 0 at `total_steps`.

    As BERT, ALBERT, ELECTRA and XLNet were trained (Devlin et al. 2019, appendix A.2).

    Attributes:
      peak: Highest learning rate.
      warmup_steps: Step of the highest learning rate; 0: no warm-up.
      total_steps: From this step on the learning rate is 0.

    Raises:
      ValueError: `total_steps` does not exceed `warmup_steps`, or `peak` is negative.
    """

    peak: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self):
        setting_types.check_range("LinearWarmupLinearDecay.peak", self.peak)
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} must be at least 0 and less than "
                f"total_steps={self.total_steps}. Lower warmup_steps (in gin "
                "WARMUP_STEPS) or raise total_steps (TRAIN_STEPS)."
            )

    def __call__(self, step: Step) -> Array:
        """The learning rate of one step."""
        step = jnp.asarray(step, jnp.float32)
        decay_steps = self.total_steps - self.warmup_steps
        left = jnp.maximum(self.total_steps - step, 0.0) / decay_steps
        rise = step / self.warmup_steps if self.warmup_steps else 1.0
        return self.peak * jnp.minimum(left, rise)


@dataclasses.dataclass(frozen=True)
class ByFactors:
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

    Attributes:
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

    factors: str = "constant * linear_warmup * rsqrt_decay"
    base_learning_rate: float = 0.5
    warmup_steps: int = 1000
    decay_factor: float = 0.5
    steps_per_decay: int = 20_000
    steps_per_cycle: int = 100_000
    step_offset: int = 0
    min_learning_rate: float = 1e-8

    def __post_init__(self):
        names = [name.strip() for name in self.factors.split("*")]
        # The same spaces in every run's identity.
        object.__setattr__(self, "factors", " * ".join(names))
        self._check("base_learning_rate")
        for name in names:
            if name not in _FACTORS:
                raise ValueError(
                    f"Unknown factor {name!r} in factors={self.factors!r}. "
                    f"There are: {', '.join(_FACTORS)}."
                )
        if set(names) - {"constant", "decay_every", "cosine_decay"}:
            self._check("warmup_steps", 1)
        if "decay_every" in names:
            self._check("steps_per_decay", 1)
        if "cosine_decay" in names:
            self._check("steps_per_cycle", 1)

    def _check(self, name: str, least: int = 0) -> None:
        setting_types.check_range(f"ByFactors.{name}", getattr(self, name), least)

    def __call__(self, step: Step) -> Array:
        """The learning rate of one step."""
        s = jnp.maximum(jnp.asarray(step, jnp.float32) - self.step_offset, 0.0)
        rate = functools.reduce(
            lambda product, name: product * _FACTORS[name](self, s),
            self.factors.split(" * "),
            1.0,
        )
        return jnp.maximum(jnp.float32(rate), self.min_learning_rate)


def _linear_decay(schedule: ByFactors, s: Array) -> Array:
    w = schedule.warmup_steps
    decay = 1.0 + schedule.decay_factor * (w - s)
    return schedule.base_learning_rate * jnp.minimum(s / w, decay)


def _cosine_decay(schedule: ByFactors, s: Array) -> Array:
    cycles = jnp.maximum(0.0, (s - schedule.warmup_steps) / schedule.steps_per_cycle)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0)))


_FACTORS: dict[str, Callable[[ByFactors, Array], Any]] = {
    "constant": lambda x, s: x.base_learning_rate,
    "linear_warmup": lambda x, s: jnp.minimum(1.0, s / x.warmup_steps),
    "linear_decay": _linear_decay,
    "rsqrt_decay": lambda x, s: jax.lax.rsqrt(jnp.maximum(s, x.warmup_steps)),
    "rsqrt_normalized_decay": lambda x, s: jnp.sqrt(
        x.warmup_steps / jnp.maximum(s, x.warmup_steps)
    ),
    "decay_every": lambda x, s: x.decay_factor ** (s // x.steps_per_decay),
    "cosine_decay": _cosine_decay,
}
