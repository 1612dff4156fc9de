"""Processes of one run: start together, wait with limits, stop at the same step.

Everything here talks through JAX's coordination service, not through collectives: a
collective has no time-out and does not say who is missing.
"""

import collections
from collections.abc import Callable
import faulthandler
import functools
import json
import os
import signal
import statistics
import threading
import time
import types
from typing import Any, NoReturn

from absl import logging
import jax

from prottrans_jax.distributed import local_devices, peers, roll_call

EXIT_STALLED = roll_call.EXIT_STALLED
_PREFIX = "prottrans_jax"
_COORDINATORS = (
    "HOST:PORT of process 0 with process_count and process_index, or 'auto' on a TPU "
    "pod or under SLURM"
)
_POLL_S = 0.5
_PEERS_S = 900.0
# Longer than any limit of a run. JAX would abort all processes, with C++ stack traces
# and without a name, when one is silent for 100 s, where storage or a neighbour may
# only pause it. `Watchdog` and `peers` tell who hangs or is gone.
_HEARTBEAT_TIMEOUT_S = 86_400

# A pause of storage or of a neighbour's is no hang: no limit of a step is shorter.
MIN_STEP_LIMIT_S = 120.0
# The median is of the last so many steps, and is used once there are some.
_MEDIAN_STEPS = 101
_MIN_STEPS = 10


class ProcessesMissing(TimeoutError):
    """Some processes did not come in time; the message names them."""


# A key can be written once, so every call of a name gets a number. All processes make
# the same calls in the same order, so their numbers agree.
_calls: dict[str, int] = {}


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = 300.0,
) -> None:
    """Joins the processes of a run. Call it before anything touches a device.

    If not all of them come in time, this process says who is missing and exits with
    `EXIT_STALLED`; JAX itself would abort with a C++ stack trace.

    Args:
      coordinator: HOST:PORT of process 0 (PORT + 1 is used for the roll call), or
        "auto" on a TPU pod or under SLURM, where JAX finds all three by itself.
        None: this process is the whole run, and nothing is done. Which GPUs of its
        node the process takes: see `distributed.local_devices`.
      num_processes: of the whole run.
      process_id: of this process, from 0.
      timeout_s: how long to wait for the others.

    Raises:
      ValueError: only part of the three is given, or they contradict each other.
    """
    if coordinator is None:
        if (num_processes or 1) != 1 or process_id:
            raise ValueError(
                f"process_count={num_processes}, process_index={process_id} without a "
                f"coordinator_address: {_COORDINATORS}."
            )
        return
    # Its C++ handler would take SIGTERM from `StopSignal`, which does the same for
    # SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    limits: dict[str, Any] = {
        # Ours must strike first: JAX's ends in an abort.
        "initialization_timeout": int(timeout_s + 30),
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT_S,
        "shutdown_timeout_seconds": int(timeout_s),
    }
    choice = local_devices.choose(os.environ)
    if choice is not None:
        logging.info("%s", choice.reason)
        # An empty list is not None: JAX then leaves all devices visible.
        limits["local_device_ids"] = list(choice.ids)
    if coordinator == "auto":
        with roll_call.deadline(
            timeout_s, lambda: "not all processes of the pod started"
        ):
            try:
                jax.distributed.initialize(**limits)
            except ValueError as error:  # It cannot tell who the processes are.
                raise ValueError(
                    "coordinator_address=auto is for a TPU pod, SLURM, Open MPI or "
                    "Kubernetes, and none of them is seen here. Give "
                    f"{_COORDINATORS}, or leave it out if this process is the whole "
                    f"run. (JAX: {error})"
                ) from error
        return
    if num_processes is None or process_id is None:
        raise ValueError(
            f"coordinator_address={coordinator} needs process_count and process_index; "
            f"got {num_processes} and {process_id}."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_index={process_id} is not below process_count={num_processes}."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator_address={coordinator!r} is not HOST:PORT.")
    roll = roll_call.RollCall(host, int(port) + 1, num_processes, process_id)
    with roll, roll_call.deadline(timeout_s, roll.describe):
        jax.distributed.initialize(coordinator, num_processes, process_id, **limits)


def barrier(name: str, timeout_s: float) -> None:
    """Waits until every process is here.

    Args:
      name: said in the error; every process calls the same barriers in the same order.
      timeout_s: limit of the wait.

    Raises:
      ProcessesMissing: names the processes that did not come, and those that did.
    """
    if jax.process_count() == 1:
        return
    client = _client()
    key = _numbered(f"barrier/{name}")
    client.key_value_set(f"{key}/{jax.process_index()}", roll_call.whoami())
    _wait_for_all(f"barrier {name!r}", key, timeout_s, _directory)
    if jax.process_index() == 0:
        client.key_value_delete(f"{key}/")


def gather(name: str, value: Any, timeout_s: float) -> list[Any]:
    """Values of all processes, in their order.

    Args:
      name: said in the error; every process makes the same calls in the same order.
      value: of this process; JSON-able.
      timeout_s: limit of the wait.

    Raises:
      ProcessesMissing: names the processes that did not come.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    client = _client()
    key = _numbered(f"gather/{name}")
    entry = json.dumps({"who": roll_call.whoami(), "value": value})
    client.key_value_set(f"{key}/{jax.process_index()}", entry)

    def names(client: Any, key: str) -> dict[str, str]:
        here = _directory(client, key)
        return {p: json.loads(entry)["who"] for p, entry in here.items()}

    _wait_for_all(name, key, timeout_s, names)
    entries = _directory(client, key)
    count = range(jax.process_count())
    return [json.loads(entries[str(process)])["value"] for process in count]


def _wait_for_all(
    what: str,
    key: str,
    timeout_s: float,
    names: Callable[[Any, str], dict[str, str]],
) -> None:
    client = _client()
    try:
        client.wait_at_barrier(key, int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        here = names(client, key)
        missing = [p for p in range(jax.process_count()) if str(p) not in here]
        came = ", ".join(f"{p} ({who})" for p, who in sorted(here.items()))
        raise ProcessesMissing(
            f"{what}: after {timeout_s:g} s process "
            f"{', '.join(map(str, missing)) or '(none)'} of {jax.process_count()} is "
            f"missing. Here: {came}."
        ) from error


def watch_peers(details: os.PathLike) -> peers.Peers:
    """Context in which the loss of another process ends this one with one line.

    Args:
      details: file for the traceback of what failed here.
    """
    count = jax.process_count()

    def exchange(address: str | None) -> str:
        return gather("address of process 0", address, _PEERS_S)[0]

    who = roll_call.whoami()
    return peers.Peers(jax.process_index(), count, who, exchange, details)


def from_process_zero(name: str, function: Callable[[], Any], timeout_s: float) -> Any:
    """Runs a function on process 0 and gives every process its result.

    Args:
      name: said in errors; every process makes the same calls in the same order.
      function: called on process 0 only; its result must be JSON-able.
      timeout_s: how long the others wait.

    Raises:
      Exception: what `function` raised, on process 0.
      RuntimeError: on the others, if it raised there; with its message.
      ProcessesMissing: process 0 did not answer in time.
    """
    if jax.process_count() == 1:
        return function()
    client = _client()
    key = _numbered(name)
    if jax.process_index() == 0:
        try:
            result = function()
            answer = json.dumps({"result": result})
        except BaseException as error:
            client.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client.key_value_set(key, answer)
        return result
    try:
        answer = json.loads(client.blocking_key_value_get(key, int(timeout_s * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise ProcessesMissing(
            f"{name}: process 0 did not answer within {timeout_s:g} s."
        ) from error
    if "error" in answer:
        raise RuntimeError(f"{name} failed on process 0: {answer['error']}")
    return answer["result"]


class StopSignal:
    """Turns SIGTERM and SIGINT into a stop that all processes make at one step.

        with StopSignal() as stop:
            for step in range(...):
                ...
                if stop.should_stop(step): save and leave
        sys.exit(stop.exit_code)

    A signal to any one process is enough. A second SIGINT ends this process at once.

    The agreement costs a training step nothing: a thread of each process looks for a
    notice. When there is one, each thread freezes its `should_stop`, publishes the
    step its process is at, and all stop at the step after the furthest.

    Args:
      timeout_s: limit of waiting for the others to agree.
    """

    def __init__(self, timeout_s: float = 20.0):
        self._timeout_s = timeout_s
        self._signal: int | None = None
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
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 0 without a signal."""
        return 0 if self._signal is None else 128 + self._signal

    def should_stop(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer on every process.

        Args:
          step: every process must call with the same, rising steps.

        Raises:
          ProcessesMissing: there was a signal, but the processes could not agree.
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
        if jax.process_count() > 1:
            self._key = _numbered("stop")
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
        # Counted apart: `_signal` may come from another process before the handler of
        # this process's own, first interrupt gets to run.
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os.write(2, b"\nSecond interrupt: leaving without a checkpoint.\n")
            os._exit(128 + number)
        if self._signal is None:
            self._signal = number
            # Not through logging: its lock may be held by the code interrupted here.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving a checkpoint, then leaving.\n".encode())

    def _agree(self) -> None:
        client = _client()
        notice = f"{self._key}/notice"
        try:
            while not self._closed.wait(_POLL_S):
                if self._signal is not None:
                    client.key_value_set(notice, str(self._signal), True)
                elif (seen := _try_get(client, notice)) is not None:
                    self._signal = int(seen)
                if self._signal is not None:
                    with self._lock:
                        self._stop_at = self._furthest(client) + 1
                    return
        except Exception as error:
            with self._lock:
                self._failure = error

    def _furthest(self, client: Any) -> int:
        """Largest step any process is at, while all hold their lock."""
        steps = f"{self._key}/steps"
        client.key_value_set(f"{steps}/{jax.process_index()}", str(self._step))
        try:
            client.wait_at_barrier(f"{self._key}/agreed", int(self._timeout_s * 1000))
        except jax.errors.JaxRuntimeError as error:
            here = _directory(client, steps)
            missing = [p for p in range(jax.process_count()) if str(p) not in here]
            raise ProcessesMissing(
                f"stop signal: process {', '.join(map(str, missing))} did not agree "
                f"on a step to stop at within {self._timeout_s:g} s."
            ) from error
        return max(int(step) for step in _directory(client, steps).values())


class Watchdog:
    """Ends a process that makes no progress, with the stacks of all its threads.

        with Watchdog(startup_s=1800, step_s=600) as watchdog:
            ...compile...
            for step in ...:
                watchdog.beat(f"step {step}", is_step=True)

    A step that takes many times the median of those before hangs, so the limit of a
    step follows the median; until some steps are done it is `step_s`.

    Args:
      startup_s: limit in seconds from here to the first beat.
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
        """Says that something was reached.

        Args:
          doing: what begins now; said if it never ends.
          limit_s: limit of what begins now, if not `step_s` (an evaluation, a wait for
            storage).
          is_step: a training step begins: its limit follows the steps before.
        """
        now = time.monotonic()
        if self._in_step:
            self._step_times.append(now - self._state[1])
        self._in_step = is_step
        if limit_s is None:
            limit_s = self.step_limit() if is_step else self._step_s
        self._state = (doing, now, limit_s)

    def step_limit(self) -> float:
        """Seconds that the next step may take."""
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
                # Not jax.process_index(): what hangs may be the start of its backend.
                process = jax._src.distributed.global_state.process_id or 0
                self._abort(
                    f"No progress for {limit_s:g} s in {doing!r} (process {process}, "
                    f"{roll_call.whoami()}). "
                    f"{self._who_hangs() or 'This host or another hangs'}. Start the "
                    "same command again on all hosts: the run goes on from its last "
                    f"checkpoint. Stacks of all threads {self._where}"
                )
                return
            # This thread needs the interpreter's lock, which hung C++ code may hold;
            # faulthandler's needs nothing.
            faulthandler.dump_traceback_later(left_s + 30, exit=True)


def _abort(message: str, stacks: os.PathLike | None) -> NoReturn:
    os.write(2, f"\n{message}\n".encode())
    try:
        with open(stacks or os.dup(2), "a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    finally:
        os._exit(EXIT_STALLED)


def _numbered(name: str) -> str:
    _calls[name] = _calls.get(name, 0) + 1
    return f"{_PREFIX}/{name}/{_calls[name]}"


def _directory(client: Any, key: str) -> dict[str, str]:
    """Values below a key, by the last part of their name."""
    return {
        name.rsplit("/", 1)[-1]: value
        for name, value in client.key_value_dir_get(f"{key}/")
    }


def _try_get(client: Any, key: str) -> str | None:
    try:
        return client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _client() -> Any:
    client = jax._src.distributed.global_state.client
    if client is None:
        raise RuntimeError("multihost.initialize has not been called.")
    return client
