"""Ends a process that hangs, with the stacks of all its threads."""

import collections
from collections.abc import Callable
import faulthandler
import functools
import os
import statistics
import threading
import time
from typing import NoReturn

import jax

from prottrans_jax.distributed import roll_call

# Minimum limit of a step: storage or another program may pause a step this long.
MIN_STEP_LIMIT_S = 120.0
# The median is over this many of the last steps, and is used after this many steps.
_MEDIAN_STEPS = 101
_MIN_STEPS = 10


class Watchdog:
    """Ends a process that makes no progress, with the stacks of all its threads.

        with Watchdog(startup_s=1800, step_s=600) as watchdog:
            ...compile...
            for step in ...:
                watchdog.beat(f"step {step}", is_step=True)

    The limit of a step is a multiple of the median of previous steps; for the first
    steps it is `step_s`.

    Args:
      startup_s: limit from the start of the context to the first beat.
      step_s: limit between later beats, and the longest limit of a step.
      step_factor: limit of a step in multiples of the median step; None: `step_s`.
      stacks: file for the stacks of all threads; None: standard error.
      who_hangs: called before the process ends; names the process that hangs, or "".
      abort: called with the message instead of ending the process; for tests.
    """

    def __init__(
        self,
        startup_s: float,
        step_s: float,
        step_factor: float | None = None,
        stacks: os.PathLike | None = None,
        who_hangs: Callable[[], str] = str,
        abort: Callable[[str], None] | None = None,
    ):
        self._step_s = step_s
        self._step_factor = step_factor
        self._who_hangs = who_hangs
        self._abort = abort or functools.partial(_abort, stacks=stacks)
        self._where = f"are in {stacks}." if stacks else "follow:"
        self._state = ("start-up", time.monotonic(), startup_s)
        self._in_step = False
        self._step_times: collections.deque[float] = collections.deque(
            maxlen=_MEDIAN_STEPS
        )
        self._closed = threading.Event()
        self._poll_s = min(1.0, step_s / 4, startup_s / 4)
        self._thread = threading.Thread(
            target=self._watch, name="watchdog", daemon=True
        )

    def beat(
        self, doing: str, limit_s: float | None = None, *, is_step: bool = False
    ) -> None:
        """Reports progress and starts the next time limit.

        Args:
          doing: the activity that begins now, for the message if it hangs.
          limit_s: limit of this activity, if not `step_s` (an evaluation, a wait for
            storage).
          is_step: whether the activity is a training step, with the limit of a step.
        """
        now = time.monotonic()
        if self._in_step:
            self._step_times.append(now - self._state[1])
        self._in_step = is_step
        if limit_s is None:
            limit_s = self.step_limit() if is_step else self._step_s
        self._state = (doing, now, limit_s)

    def step_limit(self) -> float:
        """Limit of the next step in seconds."""
        if self._step_factor is None or len(self._step_times) < _MIN_STEPS:
            return self._step_s
        adaptive = self._step_factor * statistics.median(self._step_times)
        return min(self._step_s, max(adaptive, MIN_STEP_LIMIT_S))

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_s):
            doing, since, limit_s = self._state
            left_s = limit_s - (time.monotonic() - since)
            if left_s <= 0:
                # Not jax.process_index(): the start of its backend may be what hangs.
                process = jax._src.distributed.global_state.process_id or 0
                self._abort(
                    f"No progress for {limit_s:g} s in {doing!r} (process {process}, "
                    f"{roll_call.whoami()}). "
                    f"{self._who_hangs() or 'This host or another hangs'}. Start the "
                    "same command again on all hosts; training resumes from its last "
                    f"checkpoint. Stacks of all threads {self._where}"
                )
                return
            # This thread needs the interpreter's lock, which hanging C++ code may hold.
            # The timer of faulthandler does not need it.
            faulthandler.dump_traceback_later(left_s + 30, exit=True)


def _abort(message: str, stacks: os.PathLike | None) -> NoReturn:
    os.write(2, f"\n{message}\n".encode())
    try:
        with open(stacks or os.dup(2), "a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    finally:
        os._exit(roll_call.EXIT_STALLED)
