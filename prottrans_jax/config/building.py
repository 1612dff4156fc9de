"""Gin files and bindings in T5X's manner: parse, bind, and the flags of the mains.

--gin_file=prot_t5_xl.gin           a leaf of the package, or a path; several allowed
--gin_bindings='TRAIN_STEPS = 100'  as in T5X; also --gin.TRAIN_STEPS=100
--gin_search_paths=a,b              more folders that hold gin files
--trust_config                      let files from elsewhere import any module
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import copy
import importlib
import logging as std_logging
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

from absl import flags

import gin
from prottrans_jax.config import checking, command_flags, reading
from prottrans_jax.distributed import stop_signals

Config = reading.Config
Reference = reading.Reference
UsageError = reading.UsageError

_current: Config | None = None


def parse(
    files: Sequence[str | pathlib.Path],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str | pathlib.Path] = (),
    trust_config: bool = False,
) -> Config:
    """Reads, checks and binds gin files and bindings; replaces what was bound before.

    Args:
      files: Leaf names or paths. A name is looked for as a path, in `search_paths`,
        then in the package.
      bindings: Gin statements, later ones win. They may use every module that a file
        imports, and a short form of a name (`train.total_steps`) if it is unambiguous.
      search_paths: More folders to look in, for `include` too.
      trust_config: Lets files from outside the package import any module, and with it
        run any code.

    Returns:
      The configuration. `configured` gives functions that use it.

    Raises:
      UsageError: With all unknown names and missing values found, and where.
    """
    config = checking.check(files, bindings, search_paths, trust_config)
    bind(config)
    return config


def bind(config: Config) -> None:
    """Imports what a checked configuration names and binds it; forgets the one before.

    Raises:
      UsageError: A module cannot be imported.
    """
    for module in config.imports.values():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"cannot import {module}: {error}.") from error
    global _current
    gin.clear_config()
    gin.parse_config(config.text)
    _current = config


def current() -> Config:
    """The configuration in force."""
    if _current is None:
        raise RuntimeError("No gin configuration was parsed yet: call `parse` first.")
    return _current


def resolved_config() -> str:
    """Text of the configuration in force, one self-contained gin file."""
    return current().text


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the parameters that the parsed configuration binds."""
    try:
        return gin.get_configurable(function)
    except ValueError:  # Nothing bound it: its own defaults hold.
        return function


def bound(function: Callable[..., Any]) -> dict[str, Any]:
    """What the parsed configuration binds of `function`, for `build`, by parameter."""
    config, module = current(), function.__module__
    name = next(n for n, m in config.imports.items() if m == module)
    selector = f"{name}.{function.__name__}"
    return config.parameters(Reference("", selector, call=True))


def total_steps_shape_the_run() -> bool:
    """Whether the optimizer's schedule, or the objective, depends on TRAIN_STEPS.

    With another number of steps such a run is another run.
    """
    config = current()
    return any(
        config.depends_on(value, "TRAIN_STEPS")
        for (_, selector, parameter), value in config.bindings.items()
        if selector == "trainer.train" and parameter in ("objective", "optimizer")
    )


def build(value: Any, **overrides: Any) -> Any:
    """Evaluates a value of the parsed configuration, e.g. calls `@t5.T5()`.

    Args:
      value: As held by `Config`: a literal, `Reference` or `Macro`; or "%NAME".
      **overrides: For a called `Reference`: parameters that replace the bound ones.
    """
    config = current()
    if isinstance(value, str) and value.startswith("%"):
        value = reading.Macro(value[1:])
    value = config.value(value)
    if isinstance(value, Reference) and value.call and overrides:
        with gin.config_scope(value.scope or None):
            return configured(reading.resolve(config.imports, value.selector))(
                **overrides
            )
    # gin evaluates references inside containers when a bound value is copied.
    header = "\n".join(reading.import_line(m, n) for n, m in config.imports.items())
    gin.parse_config(
        f"from __gin__ import dynamic_registration\n{header}\n_VALUE = {value!r}\n"
    )
    return copy.deepcopy(gin.query_parameter("%_VALUE"))


# ------------------------------------------------------------------------ for mains


def define_flags() -> None:
    """Defines the gin flags; for the modules with a main, at their import."""
    flags.DEFINE_multi_string(
        "gin_file", [], "Leaf of the package, or path of a gin file. May be repeated."
    )
    flags.DEFINE_multi_string(
        "gin_bindings",
        [],
        "A gin statement, e.g. 'TRAIN_STEPS = 100'. May be repeated.",
    )
    flags.DEFINE_list(
        "gin_search_paths", [], "More folders to look for gin files in, by commas."
    )
    flags.DEFINE_bool(
        "trust_config",
        False,
        "Let gin files from outside the package import any module, and run its code.",
    )


def define_run_flags() -> None:
    """Defines `define_flags` and those that say where a run lives."""
    define_flags()
    for name, meaning in (
        ("model_dir", "Directory of the run, its checkpoints and logs"),
        ("data_dir", "Folder of prepared records"),
    ):
        flags.DEFINE_string(
            name, None, f"{meaning}; the same as binding {name.upper()}."
        )


def parse_flags(
    bindings: Sequence[str] = (),
    check_places: Callable[[Config], None] = lambda config: None,
) -> Config:
    """`parse` with what the flags say, then `bindings`, which win.

    Args:
      bindings: Gin statements.
      check_places: Called before modules are imported; raises a UsageError if a folder
        that the command needs cannot be used.
    """
    values = flags.FLAGS
    given = values.flag_values_dict()
    bindings = [
        *(
            f"{n.upper()} = {given[n]!r}"
            for n in ("model_dir", "data_dir")
            if given.get(n)
        ),
        *bindings,
    ]
    if not values.gin_file:
        raise UsageError(
            f"Give a --gin_file, e.g. one of: {', '.join(reading.leaves())}."
        )
    with _without_chatter():
        config = checking.check(
            values.gin_file,
            [*values.gin_bindings, *bindings],
            values.gin_search_paths,
            values.trust_config,
        )
        check_places(config)
        bind(config)
    return config


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keeps from the terminal what TensorFlow's C++ says while it is imported.

    It only reads records here. It reports on GPUs that it will not use and on its own
    compilation, before its log level is looked at; all else goes through.
    """
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            # A signal that ends the process from another thread has a line to say.
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
    """Turns `--gin.NAME=value` into `--gin_bindings=NAME = value`, as T5X does."""
    rewritten = []
    for arg in args:
        if arg.startswith("--gin."):
            name, equals, value = arg.removeprefix("--gin.").partition("=")
            if not equals:
                raise UsageError(f"{arg}: gin bindings have the form --gin.NAME=value.")
            arg = f"--gin_bindings={name} = {value}"
        rewritten.append(arg)
    return rewritten


# A path that was given wrongly, not a machine that fails.
_WRONG_PLACE = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def message(error: BaseException) -> str:
    """Text of an error without the calls that gin adds, with a function's address."""
    lines = str(error).splitlines()
    return "\n".join(x for x in lines if not x.startswith("  In call to configurable"))


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """`absl.app.run` for mains that use gin.

    A `UsageError` or `OSError` is one line without a traceback; the exit status is 2
    for a mistake in what was asked, such as a wrong path, and 1 otherwise.
    """
    # TensorFlow, which reads records, would report on GPUs that it will not use.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # At INFO it lists the kinds of devices that this machine does not have.
    std_logging.getLogger("jax._src.xla_bridge").setLevel(std_logging.WARNING)

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except UsageError as error:
            print(f"error: {message(error)}", file=sys.stderr)
            return 2
        except OSError as error:  # Disk full, too many open files, no permission ...
            print(f"error: {message(error)}", file=sys.stderr)
            return 2 if isinstance(error, _WRONG_PLACE) else 1
        except KeyboardInterrupt:  # Before the run handles signals by itself.
            return 130

    try:
        argv = rewrite_gin_args(sys.argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command_flags.run(guarded, argv)
