"""Profiles of some steps of a run, chosen by its settings or asked for by SIGUSR1."""

import contextlib
import os
import pathlib
import signal
import tempfile
import types
from typing import Any

from absl import logging
import jax

from prottrans_jax.files import buckets, folders, paths


class Profile(contextlib.AbstractContextManager):
    """Profiles the steps [first, last) into a directory for TensorBoard.

    `kill -USR1 PID` profiles the next steps of that process, at any time.

    Args:
      directory: of the profiles; each gets a folder with its time as name. Profiles for
        a bucket are uploaded when they end.
      steps: steps to profile without a signal, or None.
      steps_after_signal: number of steps to profile after SIGUSR1.
    """

    def __init__(
        self,
        directory: paths.Place,
        steps: tuple[int, int] | None,
        steps_after_signal: int,
    ):
        self._directory = directory
        self._steps = steps
        self._steps_after_signal = steps_after_signal
        self._requested = False
        self._running = False
        # Of a profile for a bucket, until it is uploaded.
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._previous: Any = None

    def __enter__(self) -> "Profile":
        self._previous = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def before(self, step: int) -> None:
        """Starts or stops the trace if that is due before the next step."""
        if self._requested and not self._running:
            self._requested = False
            self._steps = step, step + self._steps_after_signal
        if self._steps is None:
            return
        first, last = self._steps
        if first <= step < last and not self._running:
            written_to = str(self._directory)
            if buckets.is_bucket(self._directory):
                self._temporary = tempfile.TemporaryDirectory(prefix="prottrans_jax.")
                written_to = self._temporary.name
            jax.profiler.start_trace(written_to)
            self._running = True
        elif step >= last:
            self._stop()

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        self._requested = True
        # Not through logging: the interrupted code may hold its lock.
        line = f"SIGUSR1: profiling {self._steps_after_signal} steps."
        os.write(2, f"\n{line} They will be in {self._directory}.\n".encode())

    def _stop(self) -> None:
        if self._running:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._running = False
        if self._temporary is not None:
            with self._temporary as folder:
                try:
                    folders.upload(pathlib.Path(folder), self._directory)
                except OSError as error:
                    logging.error(
                        "The profile was not uploaded: %s.", paths.explain(error)
                    )
            self._temporary = None

    def __exit__(self, *unused: object) -> None:
        self._stop()
        signal.signal(signal.SIGUSR1, self._previous)
