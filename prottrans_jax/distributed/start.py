"""Start of a run of several processes."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
import socket
import time
from typing import Any

from absl import logging
import jax

from prottrans_jax.distributed import (
    launchers,
    local_devices,
    metadata_server,
    roll_call,
)

_WAYS = (
    "Give --coordinator_address=HOST:PORT of process 0, --num_processes and "
    "--process_id, or --num_processes=1 to run alone"
)
# Longer than every limit of a run. JAX would abort all processes, with C++ stack traces
# and without a name, when one sends no heartbeat for 100 s. A pause caused by storage
# or another program may last longer. `watchdog` and `peers` name a process that hangs
# or is lost.
_HEARTBEAT_TIMEOUT_S = 86_400
# For a killed process to give up its port.
_PORT_WAIT_S = 10.0


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = 300.0,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Joins the processes of a run. Call it before any use of a device.

    Without arguments, a process that a launcher started as one of several joins them:
    see `launchers`. A process on its own stays alone.

    If some processes do not join in time, this one prints which are missing and exits
    with `roll_call.EXIT_STALLED`. JAX itself would abort with a C++ stack trace.

    Args:
      coordinator: HOST:PORT of process 0 (PORT + 1 is used for the roll call). "auto"
        demands that a launcher is found, and joins a run of one process too.
      num_processes: Of the whole run; with a coordinator, by default as the launcher
        says. 1 without a coordinator: this process is alone, whatever its launcher.
      process_id: Of this process, from 0; by default as the launcher says.
      timeout_s: Limit of the wait for the others, and for the devices.
      environ: Environment variables of this process. Which GPUs it takes: see
        `local_devices`.

    Raises:
      ValueError: The arguments or variables are incomplete or contradict each other, no
        launcher is found, or JAX cannot join the processes.
    """
    launch = _launch(coordinator, num_processes, process_id, environ)
    if launch is None:
        _check_alone(timeout_s, environ)
        return
    with _waiting(launch, timeout_s):
        if launch.process_id == 0 and not environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
            _check_port(launch.coordinator, min(timeout_s / 2, _PORT_WAIT_S))
        _join(launch, timeout_s, environ)
        count, index = jax.process_count(), jax.process_index()
        devices = jax.local_device_count()
    if launch.num_processes not in (None, count):
        raise ValueError(
            f"{launch.describe()} has {launch.num_processes} processes, but JAX found "
            f"the devices of {count}."
        )
    where = f"; coordinator {launch.coordinator}" if launch.coordinator else ""
    logging.info(
        "Joined as process %d of %d, found by %s%s; %d local device(s).",
        *(index, count, launch.describe(), where, devices),
    )


def _launch(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> launchers.Launch | None:
    """The processes to join; None: this one is alone."""
    if coordinator is None:
        if num_processes == 1 and not process_id:
            return None
        if (num_processes, process_id) != (None, None):
            raise ValueError(
                f"num_processes={num_processes}, process_id={process_id} without a "
                f"coordinator_address. {_WAYS}."
            )
        launch = launchers.find(environ)
        if launch is None and environ.get(launchers.COORDINATOR):
            raise ValueError(
                f"{launchers.COORDINATOR}={environ[launchers.COORDINATOR]} is set, but "
                "nothing says how many processes there are (JAX_NUM_PROCESSES, "
                f"JAX_PROCESS_ID, SLURM, Open MPI, torchrun). {_WAYS}."
            )
        if launch is None or launch.num_processes == 1:
            return None
    elif coordinator == "auto":
        launch = launchers.find(environ)
        if launch is None:
            raise ValueError(
                "coordinator_address=auto is for a TPU slice, SLURM (srun), Open MPI, "
                "torchrun and Kubernetes, and none of them was detected. "
                f"{_WAYS}, or drop it."
            )
    else:
        launch = _explicit(coordinator, num_processes, process_id, environ)
    if not launch.joined_by_jax and not launch.coordinator:
        raise ValueError(
            f"{launch.describe()} does not tell the address of process 0. Add "
            "--coordinator_address=HOST:PORT, the same for all processes."
        )
    return launch


def _explicit(
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> launchers.Launch:
    if num_processes is None or process_id is None:
        launch = launchers.find(environ)
        if launch is None or launch.num_processes is None:  # Kubernetes: by JAX only.
            raise ValueError(
                f"coordinator_address={coordinator} needs num_processes and "
                f"process_id; got {num_processes} and {process_id}."
            )
        launch = dataclasses.replace(launch, joined_by_jax=False)
        if num_processes is None:
            num_processes = launch.num_processes
        process_id = launch.process_id if process_id is None else process_id
    else:
        launch = launchers.Launch(
            "flags",
            (f"--num_processes={num_processes}", f"--process_id={process_id}"),
            num_processes,
            process_id,
        )
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id} is not below num_processes={num_processes}."
        )
    return dataclasses.replace(
        launch,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
    )


@contextlib.contextmanager
def _waiting(launch: launchers.Launch, timeout_s: float) -> Iterator[None]:
    """Ends this process after `timeout_s`, with the names of those that are missing."""
    read = f"found by {launch.describe()}"
    if not launch.coordinator or launch.num_processes is None:
        with roll_call.deadline(
            timeout_s, lambda: f"not all processes started; {read}"
        ):
            yield
        return
    host, _, port = launch.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"coordinator_address={launch.coordinator!r} is not HOST:PORT."
        )
    assert launch.num_processes is not None and launch.process_id is not None
    roll = roll_call.RollCall(
        host.strip("[]"), int(port) + 1, launch.num_processes, launch.process_id
    )
    with (
        roll,
        roll_call.deadline(
            timeout_s,
            lambda: f"{roll.describe()}; {read}, coordinator {launch.coordinator}",
        ),
    ):
        yield


def _check_port(coordinator: str, wait_s: float) -> None:
    """Raises if the port of process 0 stays in use: JAX's service would crash.

    It may be that of the same run, which was killed a moment ago.
    """
    port = int(coordinator.rpartition(":")[2])
    until = time.monotonic() + wait_s
    while True:
        try:
            with socket.create_server(("", port)):
                return
        except OSError as error:
            if time.monotonic() > until:
                reason = os.strerror(error.errno or 0)
                raise ValueError(
                    f"Port {port} of this host, where process 0 listens at "
                    f"{coordinator}, cannot be used: {reason}. End the process that "
                    "has it, or choose another with JAX_COORDINATOR_PORT or "
                    "--coordinator_address."
                ) from error
            time.sleep(0.2)


def _join(
    launch: launchers.Launch, timeout_s: float, environ: Mapping[str, str]
) -> None:
    # The C++ handler of JAX's preemption service would replace that of
    # `stopping.StopSignal`, which handles SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    settings: dict[str, Any] = {
        # Longer than our own limit, because JAX's ends in an abort.
        "initialization_timeout": int(timeout_s + 30),
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT_S,
        "shutdown_timeout_seconds": int(timeout_s),
    }
    choice = local_devices.choose(environ)
    if choice is not None:
        logging.info("%s", choice.reason)
        # An empty list is not None: JAX then leaves all devices visible.
        settings["local_device_ids"] = list(choice.ids)
    if launch.joined_by_jax:
        # JAX reads one of the two variables, from the environment itself.
        if any(environ.get(name) for name in metadata_server.VARIABLES):
            os.environ[metadata_server.VARIABLES[-1]] = metadata_server.address(environ)
    else:
        settings |= {
            "coordinator_address": launch.coordinator,
            "num_processes": launch.num_processes,
            "process_id": launch.process_id,
        }
    try:
        jax.distributed.initialize(**settings)
    except Exception as error:  # JAX's detection asks servers, and imports clients.
        reason = " ".join(str(error).split())
        if launch.num_processes is None:
            reason += (
                " (JAX needs the package `kubernetes`, and a service account that may "
                "read Jobs and pods.)"
            )
        raise ValueError(
            f"JAX cannot join the processes found by {launch.describe()}"
            f"{f' at {launch.coordinator}' if launch.coordinator else ''}: {reason} "
            f"{_WAYS}."
        ) from error


def _check_alone(timeout_s: float, environ: Mapping[str, str]) -> None:
    """Raises if the devices of this process belong to a run of several hosts."""
    if hint := launchers.hint(environ):
        logging.warning("%s", hint)
    if not launchers.on_tpu(environ):
        return
    # The TPU runtime waits for all hosts of a slice.
    with roll_call.deadline(
        timeout_s, lambda: "the TPU did not start; start the command on all its hosts"
    ):
        hosts = jax.process_count()
    if hosts > 1:
        raise ValueError(
            f"The TPU slice of this host has {hosts} hosts, but neither variables "
            "(TPU_WORKER_HOSTNAMES) nor the machine's metadata name them, or "
            f"--num_processes=1 was given. {_WAYS.partition(', or')[0]}."
        )
