"""`prottrans supervise`: runs a training command and restarts it when it is lost."""

import argparse
import json
import os
import socket
from typing import Any

from prottrans_jax.commands import console

_DESCRIPTION = """
Runs a training command and starts it again after a kill, a pre-emption, a stall or a
lost host; the run resumes from its newest checkpoint. On a pod run it on every host.
Stops when the run is done, after a mistake in its settings, or after two restarts in a
row without a newer checkpoint.
"""


def add_supervise(commands) -> None:
    """Adds `prottrans supervise`."""
    parser = console.add_command(
        commands,
        "supervise",
        _supervise,
        "run a training command; restart it after a kill, a stall or a lost host",
    )
    parser.description = _DESCRIPTION
    parser.usage = "prottrans supervise [flags] -- COMMAND ..."
    parser.add_argument(
        "--model-dir", help="of the run; by default the one that the command names"
    )
    parser.add_argument(
        "--events",
        help="file to which events are appended, one JSON object a line; by default "
        "MODEL_DIR/supervisor.HOST.jsonl",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=1.0,
        help="seconds before the first restart; doubled with every restart without "
        "progress (default: %(default)s)",
    )
    parser.add_argument(
        "--longest-wait",
        type=float,
        default=60.0,
        help="longest wait in seconds (default: %(default)s)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")


def _supervise(arguments: argparse.Namespace) -> int:
    from etils import epath

    from prottrans_jax.checkpoints import manifests
    from prottrans_jax.config import setting_types
    from prottrans_jax.distributed import supervisor
    from prottrans_jax.files import paths

    command = arguments.command
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise ValueError(
            "no command is given: prottrans supervise -- python -m prottrans_jax.train "
            "--gin_file=... --model_dir=..."
        )
    named = arguments.model_dir or supervisor.model_dir_of(command)
    if not named:
        raise ValueError(
            "the command names no model_dir, whose checkpoints show progress: give "
            "--model_dir to the command, or --model-dir to `prottrans supervise`."
        )
    setting_types.check_range("--wait", arguments.wait, 0)
    setting_types.check_range("--longest-wait", arguments.longest_wait, 0)
    model_dir = paths.place(named, "--model-dir")
    events = _Events(
        paths.place(arguments.events, "--events")
        if arguments.events
        else model_dir / f"supervisor.{socket.gethostname()}.jsonl"
    )
    directory = epath.Path(model_dir / "checkpoints")
    newest: list[int | None] = [None]

    def newest_step() -> int | None:
        try:
            newest[0] = max(manifests.committed(directory), default=None)
        except OSError as error:  # Storage on the network: take the last answer.
            console.say(f"prottrans: {directory} cannot be read: {error}")
        return newest[0]

    return supervisor.Supervisor(
        command,
        newest_step,
        events.write,
        supervisor.Limits(
            first_wait_s=arguments.wait, longest_wait_s=arguments.longest_wait
        ),
    ).run()


class _Events:
    """Prints events as JSON on stderr, and appends them to a file.

    The file's folder is created by the run: after a mistake in its settings there may
    be none, and then there is no file.
    """

    def __init__(self, path: Any):
        self._path = path
        self._waiting: list[str] = []

    def write(self, event: dict[str, Any]) -> None:
        from prottrans_jax.files import appending, buckets

        line = json.dumps({"host": socket.gethostname(), **event})
        console.say(line)
        self._waiting.append(line)
        # A bucket has no folders.
        if not (buckets.is_bucket(self._path) or os.path.isdir(self._path.parent)):
            return
        try:
            while self._waiting:
                appending.append_line(self._path, self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            console.say(f"prottrans: {self._path}: {error.strerror or error}")
