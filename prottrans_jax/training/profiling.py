"""Profiles of some steps of a run."""

import contextlib
import pathlib

import jax


class Profile(contextlib.AbstractContextManager):
    """Profiles the steps [first, last) into a directory for TensorBoard."""

    def __init__(self, directory: pathlib.Path, steps: tuple[int, int] | None):
        self._directory = directory
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts or stops the trace if that is due before the next step."""
        if self._steps is None:
            return
        first, last = self._steps
        if first <= step < last and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step >= last:
            self.__exit__()

    def __exit__(self, *unused: object) -> None:
        if self._running:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._running = False
