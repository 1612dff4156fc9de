"""Steps whose loss is far above the usual: detected, and answered by a policy.

The limit of a step depends only on losses that checkpoints hold, so a resumed run
answers the same steps in the same way.
"""

from collections.abc import Sequence
import math
import statistics

from prottrans_jax.training import run_settings


class LossSpikeError(RuntimeError):
    """A loss is far above the usual, and the policy is to stop."""


class Losses:
    """Losses of the last steps, and the limit of the next.

    The host reads a step's loss while the next step runs. So the limit of step n comes
    from the steps up to n - 2, whether or not the loss of n - 1 is known already.

    Args:
      spikes: settings.
      state: as stored in the checkpoint.
    """

    def __init__(
        self,
        spikes: run_settings.LossSpikes,
        state: Sequence[Sequence[float]] = (),
    ):
        self._factor, self._window = spikes.factor, spikes.window
        # [step, loss] of steps without a spike.
        self._losses = [[int(step), float(loss)] for step, loss in state]

    def limit(self, step: int) -> float:
        """Largest usual loss of a step; infinite until the window is full."""
        known = [loss for number, loss in self._losses if number <= step - 2]
        if len(known) < self._window:
            return math.inf
        return self._factor * statistics.median(known[-self._window :])

    def add(self, step: int, loss: float) -> None:
        """Adds the loss of a step without a spike."""
        self._losses.append([step, loss])
        # One more than the window: the newest may not count yet.
        del self._losses[: -self._window - 1]

    def state(self) -> list[list[float]]:
        """The losses, for a checkpoint."""
        return [list(entry) for entry in self._losses]
