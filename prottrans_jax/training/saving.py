"""Policy for checkpoints of a run that could not be saved."""

from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
import jax
from jaxtyping import PyTree

from prottrans_jax.checkpoints import checkpointing


class Saves:
    """Saves with a policy for failed saves.

    Args:
      checkpointer: writes the checkpoints.
      on_error: "retry" or "stop"; see `run_settings.Checkpoints`.
    """

    def __init__(self, checkpointer: checkpointing.Checkpointer, on_error: str):
        self._checkpointer = checkpointer
        # With several processes a save may fail on some only: they cannot agree on a
        # step to save instead.
        self._retries = on_error == "retry" and jax.process_count() == 1
        # Step of the last retry. If this save fails too, the run stops.
        self._retried_step: int | None = None

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any]) -> None:
        """Starts a save, and starts it again if the policy is to retry.

        Raises:
          checkpointing.SaveError: a save failed, and the run must stop.
        """

        def start() -> None:
            self._checkpointer.save(step, state, metadata)

        if self._must_retry(start, step):
            start()

    def failed(self, step: int) -> bool:
        """Whether the pending save failed and `step` must be saved instead.

        Raises:
          checkpointing.SaveError: the save failed, and the run must stop.
        """
        return self._must_retry(self._checkpointer.check, step)

    def wait(self, step: int) -> bool:
        """Waits for the last save; returns whether `step` must be saved again.

        Raises:
          checkpointing.SaveError: the save failed, and the run must stop.
        """
        return self._must_retry(self._checkpointer.wait, step)

    def _must_retry(self, action: Callable[[], object], step: int) -> bool:
        """Calls `action`; returns whether a save failed and `step` replaces it."""
        try:
            action()
        except checkpointing.SaveError as error:
            if not self._retries or error.step == self._retried_step:
                raise
            self._retried_step = step
            logging.error("%s Saving step %d instead.", error, step)
            return True
        return False
