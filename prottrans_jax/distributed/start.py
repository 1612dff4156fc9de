"""Start of a run of several processes."""

import os
from typing import Any

from absl import logging
import jax

from prottrans_jax.distributed import local_devices, roll_call

_COORDINATORS = (
    "HOST:PORT of process 0 with process_count and process_index, or 'auto' on a TPU "
    "pod or under SLURM"
)
# Longer than every limit of a run. JAX would abort all processes, with C++ stack traces
# and without a name, when one sends no heartbeat for 100 s. A pause caused by storage
# or another program may last longer. `watchdog` and `peers` name a process that hangs
# or is lost.
_HEARTBEAT_TIMEOUT_S = 86_400


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = 300.0,
) -> None:
    """Joins the processes of a run. Call it before any use of a device.

    If some processes do not join in time, this one prints which are missing and exits
    with `roll_call.EXIT_STALLED`. JAX itself would abort with a C++ stack trace.

    Args:
      coordinator: HOST:PORT of process 0 (PORT + 1 is used for the roll call), or
        "auto" on a TPU pod or under SLURM, where JAX finds all three values.
        None: the run has one process, and the function does nothing. For the GPUs that
        the process takes see `distributed.local_devices`.
      num_processes: of the whole run.
      process_id: of this process, from 0.
      timeout_s: limit of the wait for the others.

    Raises:
      ValueError: only some of the three values are given, or they contradict each
        other.
    """
    if coordinator is None:
        if (num_processes or 1) != 1 or process_id:
            raise ValueError(
                f"process_count={num_processes}, process_index={process_id} without a "
                f"coordinator_address: {_COORDINATORS}."
            )
        return
    # The C++ handler of JAX's preemption service would replace that of
    # `stopping.StopSignal`, which handles SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    limits: dict[str, Any] = {
        # Longer than our own limit, because JAX's ends in an abort.
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
            except ValueError as error:  # JAX found no coordinator.
                raise ValueError(
                    "coordinator_address=auto is for a TPU pod, SLURM, Open MPI or "
                    "Kubernetes, and none of them was detected. Give "
                    f"{_COORDINATORS}, or drop it for a run of one process. "
                    f"(JAX: {error})"
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
