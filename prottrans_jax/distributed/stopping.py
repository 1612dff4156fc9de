"""A stop signal that all processes of a run obey at the same step."""

import os
import signal
import threading
import types
from typing import Any

import jax

from prottrans_jax.distributed import barriers, coordination, stop_signals

_POLL_S = 0.5


class StopSignal:
    """Turns SIGTERM and SIGINT into a stop of all processes at the same step.

        with StopSignal() as stop:
            for step in range(...):
                ...
                if stop.should_stop(step): save and leave
        sys.exit(stop.exit_code)

    A signal to any process is enough. A second SIGINT ends this process at once.

    The agreement does not slow a training step: a thread of each process polls for a
    notice. After a notice, each thread blocks its `should_stop` and publishes the step
    of its process. All processes stop at the step after the largest of these.

    Args:
      number: a signal that came before, which stops at the first step; 0: none.
      timeout_s: limit of the wait for the others' steps.
    """

    def __init__(self, number: int = 0, timeout_s: float = 20.0):
        self._timeout_s = timeout_s
        self._signal: int | None = number or None
        self._interrupts = 0
        self._step = -1
        self._stop_at: int | None = None
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process knows of a signal; others may not know yet."""
        return self._signal is not None

    @property
    def number(self) -> int:
        """Number of the signal; 0 without one."""
        return self._signal or 0

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 0 without a signal."""
        return 0 if self._signal is None else 128 + self._signal

    def request(self, reason: str) -> None:
        """Asks all processes to stop, as SIGTERM does; may be called in any thread.

        Args:
          reason: what announces the end of this machine, for the message.
        """
        if self._signal is None:
            self._signal = signal.SIGTERM
            os.write(2, f"\n{reason}: saving a checkpoint, then leaving.\n".encode())

    def should_stop(self, step: int) -> bool:
        """Whether to stop after `step`; the same result on every process.

        Args:
          step: increasing; every process must call with the same steps.

        Raises:
          ProcessesMissing: there was a signal, but the processes could not agree on a
            step.
        """
        if jax.process_count() == 1:
            return self.requested
        with self._lock:
            self._step = step
            if self._failure is not None:
                raise self._failure
            return self._stop_at is not None and step >= self._stop_at

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        received, previous = stop_signals.hand_over()
        self._previous |= previous
        if received is not None and self._signal is None:
            self._on_signal(received, None)
        if jax.process_count() > 1:
            self._key = coordination.new_key("stop")
            self._thread = threading.Thread(
                target=self._agree, name="stop_signal", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        # Interrupts have their own count: `_signal` may be set by another process's
        # notice before this handler runs for the first interrupt.
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os.write(2, b"\nSecond interrupt: leaving without a checkpoint.\n")
            os._exit(128 + number)
        if self._signal is None:
            self._signal = number
            # Not through logging: the interrupted code may hold its lock.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving a checkpoint, then leaving.\n".encode())

    def _agree(self) -> None:
        client = coordination.client()
        notice_key = f"{self._key}/notice"
        try:
            while not self._closed.wait(_POLL_S):
                if self._signal is not None:
                    client.key_value_set(notice_key, str(self._signal), True)
                elif (notice := coordination.try_get(notice_key)) is not None:
                    self._signal = int(notice)
                if self._signal is not None:
                    with self._lock:
                        self._stop_at = self._furthest(client) + 1
                    return
        except Exception as error:
            with self._lock:
                self._failure = error

    def _furthest(self, client: Any) -> int:
        """Largest step of all processes, while each of them holds its lock."""
        steps_key = f"{self._key}/steps"
        client.key_value_set(f"{steps_key}/{jax.process_index()}", str(self._step))
        try:
            client.wait_at_barrier(f"{self._key}/agreed", int(self._timeout_s * 1000))
        except jax.errors.JaxRuntimeError as error:
            steps = coordination.values_below(steps_key)
            missing = [p for p in range(jax.process_count()) if str(p) not in steps]
            raise barriers.ProcessesMissing(
                f"stop signal: process {', '.join(map(str, missing))} did not agree "
                f"on a step to stop at within {self._timeout_s:g} s."
            ) from error
        return max(int(step) for step in coordination.values_below(steps_key).values())
