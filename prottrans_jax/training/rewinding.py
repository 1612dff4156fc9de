"""A run that goes back to a checkpoint in the same process."""

from collections.abc import Callable
import dataclasses
from typing import TypeVar

from absl import logging

_T = TypeVar("_T")


class RewindError(Exception):
    """Ends an attempt, so that the next one resumes from a checkpoint.

    Every process of a run raises it at the same step.

    Attributes:
      latest: the run goes back to the newest checkpoint up to this step; later ones are
        deleted. None: to the newest of all.
      skip_batches: batches to leave out after the checkpoint.
      limit: number of such rewinds, one after the other without a newer checkpoint
        than before, after which `error` is raised instead.
      error: what ends the run in that case; its message says why the run goes back.
    """

    def __init__(
        self,
        error: Exception,
        *,
        latest: int | None = None,
        skip_batches: int = 0,
        limit: int = 3,
    ):
        super().__init__(str(error))
        self.error, self.latest = error, latest
        self.skip_batches, self.limit = skip_batches, limit


@dataclasses.dataclass
class Rewinds:
    """The rewinds since the checkpoint to which the run went back.

    Attributes:
      pending: the rewind with which the next attempt begins.
      count: rewinds to `resumed_at`, or before it.
      resumed_at: step to which the run went back last.
      skipped: batches left out after that step.
      stop_signal: a stop signal that came before the run went back; 0 without one.
    """

    pending: RewindError | None = None
    count: int = 0
    resumed_at: int = -1
    skipped: int = 0
    stop_signal: int = 0

    def keep_signal(self, number: int) -> None:
        """Keeps a stop signal for the next attempt; 0: there was none."""
        self.stop_signal = number

    def resume(self, step: int) -> int:
        """Notes that an attempt resumes at a step; returns how many batches it skips.

        Rewinds to the same checkpoint, or an earlier one, skip the batches of the
        previous ones too.
        """
        rewind, self.pending = self.pending, None
        if rewind is None:
            return 0
        if step > self.resumed_at:
            self.count = self.skipped = 0
        self.count += 1
        self.resumed_at = step
        self.skipped += rewind.skip_batches
        return self.skipped


def repeat(attempt: Callable[[Rewinds], _T]) -> _T:
    """The result of an attempt that does not go back.

    Raises:
      Exception: `RewindError.error`, if the run went back too often.
    """
    rewinds = Rewinds()
    while True:
        try:
            return attempt(rewinds)
        except RewindError as rewind:
            if rewinds.count >= rewind.limit:
                raise rewind.error from None
            logging.error("%s The run goes back to a checkpoint.", rewind.error)
            rewinds.pending = rewind
