"""Python processes and free ports for tests."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time


def free_port():
    """A port such that it and the next one are free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("localhost", port + 1))
            except OSError:
                continue
            return port


def start_python(*args):
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def finish(process, timeout_s=120):
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output


def kill_once(log, step, marker):
    """SIGKILL to this process when `log` has the step, unless `marker` exists."""

    def kill():
        while not (log.exists() and f'"step": {step}' in log.read_text()):
            time.sleep(0.001)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if not marker.exists():
        threading.Thread(target=kill, daemon=True).start()
