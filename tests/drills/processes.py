"""Commands of the package as processes that start in 0.1 s.

`python -m prottrans_jax.train` spends 4 s of CPU time on imports. A drill starts
hundreds, so it forks them from a process that has imported everything but has not yet
started JAX. The module then runs as `__main__`, with flags, as `python -m` does it.
"""

import atexit
from collections.abc import Callable, Mapping
import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

from drills import virtual_hosts

_BEGIN_S = 0.05
TESTS = pathlib.Path(__file__).resolve().parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["drills.preloaded"])


class Process:
    """A function in a process of its own, with the interface of `subprocess.Popen`.

    Args:
      function: importable; its result is the exit status.
      arguments: of the function.
      log: new file for standard output and standard error.
      env: changes of the environment.
      host: where it runs; None: this machine.
      limit_bytes: largest file that it can write; None: no limit.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        arguments: tuple[Any, ...],
        log: pathlib.Path,
        env: Mapping[str, str] | None = None,
        host: virtual_hosts.VirtualHost | None = None,
        limit_bytes: int | None = None,
    ):
        os.environ["PYTHONPATH"] = str(TESTS)  # Of the process to fork from.
        self.log = log
        self._process = _context.Process(
            target=_run,
            args=(function, arguments, log, dict(env or {}), host, limit_bytes),
        )
        self._process.start()
        # A signal before it runs would meet the handlers of `multiprocessing`.
        while not log.exists():
            time.sleep(0.002)
        time.sleep(_BEGIN_S)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.log.name, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class FreshProcess(subprocess.Popen):
    """`python -m MODULE FLAGS` with its imports; arguments as of `start_module`."""

    def __init__(
        self, module: str, flags: list[str], log: pathlib.Path, env: Mapping[str, str]
    ):
        self.log = log
        with log.open("ab") as file:
            super().__init__(
                [sys.executable, "-m", module, *flags],
                stdout=file,
                stderr=file,
                env=os.environ | env,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def start_module(
    module: str, flags: list[str], log: pathlib.Path, **options: Any
) -> Process:
    """Starts `python -m MODULE FLAGS`; `options` are those of `Process`."""
    return Process(run_module, (module, flags), log, **options)


def run_module(module: str, flags: list[str]) -> None:
    """`python -m MODULE FLAGS` in this process."""
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run(function, arguments, log, env, host, limit_bytes) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    if host is not None:
        host.enter()
    if limit_bytes is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        code = function(*arguments)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # multiprocessing leaves them out.
    sys.exit(code)
