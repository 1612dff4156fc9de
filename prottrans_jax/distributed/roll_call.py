"""Names the processes that are missing when a run of several does not start.

JAX's own service does not report which processes have joined before all have, and ends
a start that takes too long with a C++ abort.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import socket
import threading

from absl import logging

from prottrans_jax import printable

# EX_TEMPFAIL of sysexits.h: a supervisor may start the run again.
EXIT_STALLED = 75


class RollCall:
    """Context of a start, in which the other processes report to process 0.

    Args:
      host: of process 0.
      port: on which process 0 listens during the start.
      num_processes: of the run.
      process_id: of this process.
    """

    def __init__(self, host: str, port: int, num_processes: int, process_id: int):
        self._address = (host, port)
        self._num_processes = num_processes
        self._process_id = process_id
        self._present = {process_id: whoami()}
        self._reached = False
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._listen if process_id == 0 else self._call, daemon=True
        )

    def describe(self) -> str:
        """Which processes are missing, as far as this process knows."""
        if self._process_id:
            if not self._reached:
                return (
                    f"process 0 cannot be reached at {self._address[0]} "
                    "(not started, another --coordinator_address, or a firewall)"
                )
            return (
                "process 0 is up, another process is missing or its devices did not "
                "start: see the message of process 0"
            )
        missing = sorted(set(range(self._num_processes)) - set(self._present))
        if not missing:
            return "all processes are here, but JAX did not start their devices"
        present = ", ".join(f"{p} ({who})" for p, who in sorted(self._present.items()))
        return f"process {', '.join(map(str, missing))} missing; here: {present}"

    def __enter__(self) -> "RollCall":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()

    def _listen(self) -> None:
        try:
            with socket.create_server(("", self._address[1])) as server:
                server.settimeout(0.2)
                while not self._closed.is_set():
                    with contextlib.suppress(OSError, ValueError):
                        connection, _ = server.accept()
                        with connection:
                            connection.settimeout(1)
                            number, who = connection.recv(200).decode().split(" ", 1)
                            if 0 <= int(number) < self._num_processes:
                                self._present[int(number)] = who
        except OSError as error:
            logging.warning("No roll call on port %d: %s", self._address[1], error)

    def _call(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                with socket.create_connection(self._address, timeout=2) as connection:
                    connection.sendall(f"{self._process_id} {whoami()}".encode())
                self._reached = True
                return
            self._closed.wait(0.2)


@contextlib.contextmanager
def deadline(timeout_s: float, describe: Callable[[], str]) -> Iterator[None]:
    """Ends this process with the message of `describe` if the body takes longer."""

    def end() -> None:
        message = f"Start-up: after {timeout_s:g} s {describe()}."
        os.write(2, f"\n{printable.plain(message)}\n".encode())
        os._exit(EXIT_STALLED)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def whoami() -> str:
    """Host and process id of this process, for messages."""
    return f"{socket.gethostname()}, pid {os.getpid()}"
