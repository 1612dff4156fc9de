"""Shared by the programs that make a folder from a checkpoint: convert and export."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import sys
from typing import Any

from absl import logging

from prottrans_jax import printable
from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import paths, writing


def run(
    program: str,
    argv: Sequence[str],
    required: Sequence[Any],
    write: Callable[[str, pathlib.Path], Any],
    report: Callable[[Any, paths.Place], None],
) -> int:
    """Runs `make` with values from absl flags; also handles stop signals.

    Args:
      program: Name in messages.
      argv: Positional arguments; only the program's name is allowed.
      required: Flags that must be set: source, output folder, others.
      write: As in `make`.
      report: As in `make`.
    """
    if len(argv) > 1:
        return _fail(program, 2, f"unexpected {argv[1]!r}; see --help.")
    logging.set_verbosity(logging.WARNING)
    options = {flag.name: flag.value for flag in required}
    return stop_signals.guarded(
        program,
        stop_signals.NOTHING_IS_LEFT,
        lambda: make(program, options, write, report),
    )


def make(
    program: str,
    options: Mapping[str, str | None],
    write: Callable[[str, pathlib.Path], Any],
    report: Callable[[Any, paths.Place], None],
) -> int:
    """Checks the options, makes the folder, and returns the exit status.

    Args:
      program: Name in messages.
      options: Values of the required options by name: source, output folder, others.
      write: Called with the source and a temporary folder, which then becomes the
        output.
      report: Called with the result of `write` and the output.
    """
    missing = [name for name, value in options.items() if not value]
    if missing:
        return _fail(
            program, 2, f"--{' and --'.join(missing)} must be given; see --help."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Nothing is computed, so no accelerator is taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    (source_name, source), (output_name, output), *_ = options.items()
    assert source is not None and output is not None
    try:
        source = paths.source(source, f"--{source_name}")
        target = paths.place(output, f"--{output_name}")
    except paths.PathError as error:
        return _fail(program, 2, str(error))

    from prottrans_jax.checkpoints import manifests

    try:
        with (
            writing.new_folder(target) as folder,
            stop_signals.before_exit(lambda: writing.remove(folder.parent)),
        ):
            written = write(source, folder)
    except OSError as error:
        return _fail(program, 1, f"{paths.explain(error).rstrip('.')}.")
    except (ValueError, manifests.CheckpointError) as error:
        return _fail(program, 1, str(error))
    report(written, target)
    return 0


def _fail(program: str, status: int, reason: str) -> int:
    print(printable.plain(f"{program}: {reason}"), file=sys.stderr)
    return status
