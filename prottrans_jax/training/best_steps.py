"""The step with the best validation metric so far, and when to stop early."""

from collections.abc import Mapping
from typing import Any

from prottrans_jax.training import run_settings


class BestStep:
    """Follows one metric over the evaluations of a run.

    It is a pure function of the evaluations: a resumed run, and every process of a run,
    chooses the same step. Its state is JSON and part of each checkpoint.

    Args:
      settings: Metric and patience.
      state: As stored in the checkpoint from which the run resumes.
    """

    def __init__(
        self, settings: run_settings.Best, state: Mapping[str, Any] | None = None
    ):
        self._settings = settings
        state = state or {}
        self._step: int | None = state.get("step")
        self._value: float | None = state.get("value")
        self._evaluations_since = state.get("evaluations_since", 0)

    @property
    def step(self) -> int | None:
        """The best step; None before the first evaluation, or without a metric."""
        return self._step

    @property
    def is_exhausted(self) -> bool:
        """Whether `patience` evaluations in a row were not better."""
        patience = self._settings.patience
        return patience is not None and self._evaluations_since >= patience

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; empty without a metric."""
        if self._settings.metric is None:
            return {}
        return {
            "step": self._step,
            "value": self._value,
            "evaluations_since": self._evaluations_since,
        }

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, float]]) -> bool:
        """Takes the results of an evaluation; returns whether they are the best so far.

        Raises:
          ValueError: The metric is not among them; lists those that are.
        """
        settings = self._settings
        if settings.metric is None:
            return False
        data_set, _, name = settings.metric.partition("/")
        scalars = results.get(data_set, {})
        if name not in scalars:
            known = [f"{data}/{key}" for data in results for key in results[data]]
            raise ValueError(
                f"Best.metric={settings.metric!r} is not evaluated in this run. There "
                f"are: {', '.join(known)}."
            )
        value = scalars[name]
        sign = 1.0 if settings.mode == "max" else -1.0
        # The first of equal values stays the best. A NaN is never better.
        if self._value is None or sign * value > sign * self._value:
            self._step, self._value, self._evaluations_since = step, value, 0
            return True
        self._evaluations_since += 1
        return False
