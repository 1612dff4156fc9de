"""`prottrans models` and `export`: which models there are, and how one is made."""

import argparse
import json
import subprocess
import sys

from prottrans_jax.commands import console
from prottrans_jax.distributed import stop_signals


def add_models(commands) -> None:
    """Adds `prottrans models`."""
    parser = console.add_command(
        commands, "models", _models, "list the models known by name"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def _models(arguments: argparse.Namespace) -> int:
    from prottrans_jax.encoders import loading
    from prottrans_jax.interop import huggingface

    rows = []
    for name, repository in loading.NAMES.items():
        try:
            here = str(huggingface.find(repository))
        except FileNotFoundError:
            here = ""
        rows.append({"name": name, "repository": repository, "folder": here})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        state = row["folder"] or "not here; --download fetches it"
        print(f"{row['name']:{width}}  {row['repository']:42}  {state}")
    print("Folders of prottrans_jax.export and of Hugging Face work as well.")
    return 0


def add_export(commands) -> None:
    """Adds `prottrans export`."""
    parser = console.add_command(
        commands, "export", _export, "as `python -m prottrans_jax.export`; see there"
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--part", choices=("encoder", "all"), default="encoder")
    parser.add_argument("--network", choices=("generator", "discriminator"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--stablehlo", action="store_true")
    parser.add_argument("--vocabulary", help="as of `prottrans embed`")


def _export(arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "prottrans_jax.export"]
    command += [
        f"--checkpoint={arguments.checkpoint}",
        f"--output={arguments.output}",
        f"--part={arguments.part}",
    ]
    command += [f"--network={arguments.network}"] * bool(arguments.network)
    command += [f"--dtype={arguments.dtype}"] * bool(arguments.dtype)
    command += ["--stablehlo"] * arguments.stablehlo
    command += [f"--vocabulary={arguments.vocabulary}"] * bool(arguments.vocabulary)
    with subprocess.Popen(command) as process:
        try:
            return _wait_for(process)
        except stop_signals.Stopped as stopped:
            process.send_signal(stopped.status - 128)
            raise


def _wait_for(process: subprocess.Popen) -> int:
    while True:
        stop_signals.check()
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            pass
