"""Worker processes of `prepare`, which end with their parent and on a stop signal."""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

from prottrans_jax.distributed import stop_signals


@contextlib.contextmanager
def started(num_processes: int) -> Iterator[concurrent.futures.Executor]:
    """Worker processes; with one process, calls run in this one.

    Raises:
      ValueError: A worker was killed.
    """
    if num_processes == 1:
        yield _InProcess()
        return
    # spawn: forking a process that has threads (TensorFlow, JAX) can hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
    )
    try:
        yield pool
    except concurrent.futures.process.BrokenProcessPool as e:
        stop_signals.check()  # A signal to the process group also kills the workers.
        raise ValueError(
            "a worker process was killed, probably out of memory. Try fewer "
            "--num_processes."
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: concurrent.futures.Executor, width: int, calls: Iterable[tuple]
) -> Iterator[Any]:
    """Results in the order of `calls`; at most `width` calls run at a time."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for call in calls:
        pending.append(pool.submit(*call))
        if len(pending) >= width:
            yield _result_of(pending.popleft())
    while pending:
        yield _result_of(pending.popleft())


def _result_of(future: concurrent.futures.Future) -> Any:
    """The result of `future`; a stop signal interrupts the wait."""
    while True:
        stop_signals.check()
        try:
            return future.result(timeout=0.2)
        except TimeoutError:
            if future.done():  # A worker's own error.
                raise


class _InProcess(concurrent.futures.Executor):
    """Runs each call immediately, in this process."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _begin_worker() -> None:
    # The parent handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        # A killed parent cannot stop its workers.
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
