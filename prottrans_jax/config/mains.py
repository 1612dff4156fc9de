"""Gin flags of the mains (modules that are run as commands), and how these run.

--gin_file=prot_t5_xl.gin           a leaf of the package, or a path; several allowed
--gin_bindings='TRAIN_STEPS = 100'  as in T5X; also --gin.TRAIN_STEPS=100
--gin_search_paths=a,b              more folders with gin files
--trust_config                      let other files import any module
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import logging as std_logging
import os
import re
import sys
import tempfile
from typing import Any

from absl import flags

from prottrans_jax import printable
from prottrans_jax.config import building, checking, command_flags, reading
from prottrans_jax.distributed import stop_signals


def define_flags() -> None:
    """Defines the gin flags; mains call it at import."""
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "Leaf of the package, or path or URL of a gin file. May be repeated.",
    )
    flags.DEFINE_multi_string(
        "gin_bindings",
        [],
        "A gin statement, e.g. 'TRAIN_STEPS = 100'. May be repeated.",
    )
    flags.DEFINE_list(
        "gin_search_paths", [], "More folders to search for gin files, by commas."
    )
    flags.DEFINE_bool(
        "trust_config",
        False,
        "Let gin files from outside the package import, and so run, any module.",
    )


def define_run_flags() -> None:
    """Defines the gin flags, --model_dir and --data_dir."""
    define_flags()
    for name, meaning in (
        ("model_dir", "Directory of the run, its checkpoints and logs"),
        ("data_dir", "Folder of prepared records"),
    ):
        flags.DEFINE_string(
            name, None, f"{meaning}; the same as binding {name.upper()}."
        )


def define_process_flags() -> None:
    """Defines the flags with which the processes of a run find each other."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "host:port of process 0 of a run of several processes. Default: found on a TPU "
        "slice, under SLURM, Open MPI, torchrun and Kubernetes; 'auto' demands one of "
        "these.",
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes of the run. Default: as the launcher says; 1 runs alone.",
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Number of this process, from 0. Default: as the launcher says.",
    )
    # Names in T5X and in earlier versions.
    flags.DEFINE_alias("process_count", "num_processes")
    flags.DEFINE_alias("process_index", "process_id")
    flags.DEFINE_integer(
        "initialization_timeout", 300, "Seconds to wait for all processes at the start."
    )


def process_arguments() -> dict[str, Any]:
    """The process flags as arguments of `distributed.start.initialize`."""
    values = flags.FLAGS
    return {
        "coordinator": values.coordinator_address,
        "num_processes": values.num_processes,
        "process_id": values.process_id,
        "timeout_s": values.initialization_timeout,
    }


def parse_flags(
    bindings: Sequence[str] = (),
    check_places: Callable[[reading.Config], None] = lambda config: None,
    unneeded: Sequence[str] = (),
) -> reading.Config:
    """Checks and binds the configuration of the flags.

    Args:
      bindings: Further gin statements, which take precedence.
      check_places: Called before modules are imported; raises a UsageError if a folder
        that the command needs cannot be used.
      unneeded: Macros that the command does not need though a file requires them.

    Raises:
      UsageError: The configuration has mistakes.
    """
    values = flags.FLAGS
    folders = {
        name: values[name].value
        for name in ("model_dir", "data_dir")
        if name in values and values[name].value
    }
    bindings = [
        *(f"{name.upper()} = {folder!r}" for name, folder in folders.items()),
        *bindings,
    ]
    if not values.gin_file:
        raise reading.UsageError(
            f"Give a --gin_file, e.g. one of: {', '.join(reading.leaves())}."
        )
    with _without_chatter():
        config = checking.check(
            values.gin_file,
            [*values.gin_bindings, *bindings],
            values.gin_search_paths,
            values.trust_config,
            unneeded,
        )
        check_places(config)
        building.bind(config)
    return config


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Removes messages of TensorFlow's C++ code from standard error during its import.

    TensorFlow only reads records here. Before it checks its log level, it reports on
    GPUs that it will not use, and on its own compilation. Other output passes.
    """
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            # The thread that ends the process after a signal prints a line.
            with stop_signals.before_exit(lambda: os.dup2(terminal, 2)):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines(True):
                if not _CHATTER.match(line):
                    sys.stderr.write(line)


_CHATTER = re.compile(
    r"WARNING: All log messages before absl::InitializeLog|"
    r"[IWE]\d{4} .*\b(port|cudart_stub|cuda_platform|cpu_feature_guard)\.cc:\d+\]|"
    r"To enable the following instructions: "
)


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
    """Rewrites `--gin.NAME=value` to `--gin_bindings=NAME = value`, as T5X does."""
    rewritten = []
    for arg in args:
        if arg.startswith("--gin."):
            name, equals, value = arg.removeprefix("--gin.").partition("=")
            if not equals:
                raise reading.UsageError(
                    f"{arg}: gin bindings have the form --gin.NAME=value."
                )
            arg = f"--gin_bindings={name} = {value}"
        rewritten.append(arg)
    return rewritten


# Errors caused by a wrong path, with exit status 2.
_PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """`absl.app.run` for mains that use gin.

    A `UsageError` or `OSError` is reported in one line without a traceback. The exit
    status is 2 for a user's mistake, such as a wrong path, and 1 otherwise.
    """
    # TensorFlow reads records here, and would report on GPUs that it will not use.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # At INFO JAX lists the kinds of devices that this machine does not have.
    std_logging.getLogger("jax._src.xla_bridge").setLevel(std_logging.WARNING)

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except reading.UsageError as error:
            print(printable.plain(f"error: {error}"), file=sys.stderr)
            return 2
        except OSError as error:  # Disk full, too many open files, no permission ...
            print(printable.plain(f"error: {error}"), file=sys.stderr)
            return 2 if isinstance(error, _PATH_ERRORS) else 1

    try:
        argv = rewrite_gin_args(sys.argv)
    except reading.UsageError as error:
        print(printable.plain(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    command_flags.run(guarded, argv)
