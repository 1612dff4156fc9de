"""Prefetches batches in a thread."""

from collections.abc import Callable, Iterator
import contextlib
import queue
import threading
from typing import Any

from jaxtyping import PyTree

_END = object()


class Infeed(contextlib.AbstractContextManager):
    """Runs `make(index)` for index = start, start + 1, ... ahead of the consumer.

    The thread does the host's work (reading, packing, corruption) and starts the
    transfer to the device; both overlap the running step. An error in the thread is
    raised by the `next` that would have returned the batch.

    Args:
      make: index of a global batch to that batch on the device.
      start: first index.
      stop: one past the last index; None: no end.
      depth: number of batches prefetched. Two keep the device busy; more use device
        memory.
    """

    def __init__(
        self,
        make: Callable[[int], PyTree],
        start: int,
        stop: int | None,
        depth: int = 2,
    ):
        self._make = make
        self._range = (start, stop)
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="infeed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        index, stop = self._range
        try:
            while not self._closed.is_set() and (stop is None or index < stop):
                self._put((index, self._make(index), None))
                index += 1
            self._put((index, _END, None))
        except BaseException as error:  # Raised again in the consumer's thread.
            self._put((index, _END, error))

    def _put(self, item) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                pass

    def __iter__(self) -> Iterator[tuple[int, PyTree]]:
        while True:
            index, batch, error = self._queue.get()
            if error is not None:
                raise error
            if batch is _END:
                return
            yield index, batch

    def __exit__(self, *unused) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
