"""Evaluation of the model on other tasks while it trains: `Evaluation.downstream`."""

from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from prottrans_jax import types
from prottrans_jax.distributed import barriers
from prottrans_jax.training import run_settings

# Before the names of its scalars.
NAME = "downstream"


def is_due(settings: run_settings.Evaluation, step: int, total_steps: int) -> bool:
    """Whether it follows the evaluation of a step; also that of the last step."""
    if settings.downstream is None:
        return False
    return step % settings.downstream_period == 0 or step == total_steps


def evaluate(
    settings: run_settings.Evaluation,
    objective: types.Objective,
    params: types.Params,
    beat: Callable[[], None],
    limit_s: float,
) -> dict[str, float]:
    """The scalars, computed on process 0; all processes must call it.

    Args:
      settings: With `downstream`.
      objective: Objective of the run.
      params: Parameters on the devices, of which process 0 gets a copy in host memory.
      beat: Called often; restarts the limit of the evaluation.
      limit_s: Limit of the other processes' wait.
    """
    if jax.process_count() == 1:
        host_params = jax.device_get(params)
    else:
        host_params = multihost_utils.process_allgather(params, tiled=True)
    beat()
    function = settings.downstream
    assert function is not None
    return barriers.from_process_zero(
        NAME, lambda: dict(function(objective, host_params, beat)), limit_s
    )
