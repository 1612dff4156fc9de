"""What the mains that make a new folder of a checkpoint share: convert and export."""

from collections.abc import Callable, Sequence
import os
import pathlib
import sys
from typing import Any

from absl import logging

from prottrans_jax.distributed import stop_signals
from prottrans_jax.files import paths, writing


def run(
    program: str,
    argv: Sequence[str],
    needed: Sequence[Any],
    write: Callable[[str, pathlib.Path], Any],
    tell: Callable[[Any, pathlib.Path], None],
) -> int:
    """Checks what was asked for, makes the folder, and returns the exit status.

    Args:
      program: What errors begin with.
      argv: Arguments that are no flags.
      needed: Flags without which nothing is done; the first is the source, the second
        the folder to make.
      write: Called with the source and a folder, which then becomes the output.
      tell: Called with what `write` returned and the output.
    """

    def fail(status: int, why: str) -> int:
        print(f"{program}: {why}", file=sys.stderr)
        return status

    if len(argv) > 1:
        return fail(2, f"unexpected {argv[1]!r}; see --help.")
    missing = [flag.name for flag in needed if not flag.value]
    if missing:
        return fail(2, f"--{' and --'.join(missing)} must be given; see --help.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Nothing is computed: no accelerator is taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.set_verbosity(logging.WARNING)
    try:
        source = paths.source(needed[0].value, f"--{needed[0].name}")
        output = paths.local(needed[1].value, f"--{needed[1].name}")
    except paths.PathError as error:
        return fail(2, str(error))

    def make() -> int:
        from prottrans_jax.checkpoints import checkpointing

        try:
            with (
                writing.new_folder(output) as folder,
                stop_signals.before_exit(lambda: writing.remove(folder.parent)),
            ):
                written = write(source, folder)
        except OSError as error:
            return fail(1, f"{paths.explain(error).rstrip('.')}.")
        except (ValueError, checkpointing.CheckpointError) as error:
            return fail(1, str(error))
        tell(written, output)
        return 0

    return stop_signals.guarded(program, stop_signals.NOTHING_IS_LEFT, make)
