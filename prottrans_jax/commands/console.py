"""Shared by all commands: parser, common flags, messages on stderr, exit statuses."""

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import Any, NoReturn

from prottrans_jax import printable
from prottrans_jax.config import setting_types

_LEVELS = ("debug", "info", "warning", "error")


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, and refuses two different values of a flag.

    `type=int` accepts 1e6 too, and numbers must be finite; see `setting_types`.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.register("type", int, _argument(setting_types.whole_number))
        self.register("type", float, _argument(setting_types.number_from_text))

    def error(self, message: str) -> NoReturn:
        """Prints the error and exits with status 2."""
        line = f"{self.prog}: {message} (--help lists all flags.)"
        self.exit(2, f"{printable.plain(line)}\n")


def _set_once(action, parser, namespace, value, flag) -> None:
    first_values = vars(namespace).setdefault("_first_values", {})
    first_value = first_values.setdefault(action.dest, value)
    if first_value != value:
        name = flag or action.dest
        parser.error(
            f"{name} is set twice, to {first_value} and {value}; it takes one value."
        )
    setattr(namespace, action.dest, value)


class _StoreOnce(argparse.Action):
    """Stores a value; a second, different one is an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        _set_once(self, parser, namespace, values, option_string)


class Switch(argparse.BooleanOptionalAction):
    """`--NAME` and `--no-NAME`; both together are an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Stores True for `--NAME` and False for `--no-NAME`."""
        value = not str(option_string).startswith("--no-")
        _set_once(self, parser, namespace, value, option_string)


def _argument(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """Adds a subcommand with the common flags.

    Args:
      commands: Result of `ArgumentParser.add_subparsers`.
      name: Name of the subcommand.
      run: Called with the arguments; returns the exit status.
      summary: One line of help.
    """
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only")
    parser.add_argument(
        "--log-level",
        type=str.lower,
        choices=_LEVELS,
        help="log level; by default warning, with -v info, with -q error",
    )
    return parser


def set_log_level(arguments: argparse.Namespace) -> None:
    """Sets the log level from -v, -q and --log-level."""
    from absl import logging

    default = "error" if arguments.quiet else "warning"
    default = "info" if arguments.verbose else default
    logging.set_verbosity(arguments.log_level or default)


def fail(status: int, reason: str) -> int:
    """Prints the reason of a failure and returns the status."""
    say(f"prottrans: {reason}")
    return status


def say(line: str) -> None:
    """Prints a line on stderr."""
    print(printable.plain(line), file=sys.stderr, flush=True)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, separated by commas."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def gib(size: int) -> str:
    """A number of bytes in MiB or GiB."""
    if size < 1 << 30:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / (1 << 30):.1f} GiB"


def duration(seconds: float) -> str:
    """A time span in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
