"""`prottrans models` and `export`: list known models, export a trained one."""

import argparse
from collections.abc import Mapping
import json
import pathlib

from prottrans_jax.commands import console
from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import paths


def add_models(commands) -> None:
    """Adds `prottrans models`."""
    parser = console.add_command(
        commands, "models", _models, "list the models known by name"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _models(arguments: argparse.Namespace) -> int:
    from prottrans_jax.interop import huggingface

    rows = []
    for name, repository in huggingface.NAMES.items():
        try:
            folder = str(huggingface.find(repository))
        except FileNotFoundError:
            folder = ""
        rows.append({"name": name, "repository": repository, "folder": folder})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        state = row["folder"] or "not in the cache; --download fetches it"
        print(f"{row['name']:{width}}  {row['repository']:42}  {state}")
    print("Exported folders and folders in Hugging Face's layout work as well.")
    return 0


def add_export(commands) -> None:
    """Adds `prottrans export`."""
    parser = console.add_command(
        commands,
        "export",
        _export,
        "export a trained model to a folder; same as `python -m prottrans_jax.export`",
    )
    parser.set_defaults(when_stopped=stop_signals.NOTHING_IS_LEFT)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--part", choices=("encoder", "all"), default="encoder")
    parser.add_argument("--network", choices=("generator", "discriminator"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--stablehlo", action="store_true")
    parser.add_argument("--vocabulary", help="as for `prottrans embed`")


def _export(arguments: argparse.Namespace) -> int:
    from prottrans_jax.checkpoints import new_folders

    def write(checkpoint: str, folder: pathlib.Path) -> Mapping[str, int]:
        from prottrans_jax.encoders import exporting

        return exporting.export(
            checkpoint,
            folder,
            encoder_only=arguments.part == "encoder",
            network=arguments.network,
            dtype=arguments.dtype,
            stablehlo=arguments.stablehlo,
            vocabulary=arguments.vocabulary,
        )

    def report(files: Mapping[str, int], output: paths.Place) -> None:
        from prottrans_jax.encoders import exporting

        exporting.print_files(files, output)

    options = {"checkpoint": arguments.checkpoint, "output": arguments.output}
    return new_folders.make("export", options, write, report)
