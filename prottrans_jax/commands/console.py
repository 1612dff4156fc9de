"""What all commands share: flags, lines on stderr, exit statuses."""

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import Any, NoReturn

from prottrans_jax.config import setting_types

_LEVELS = ("debug", "info", "warning", "error")


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, and no flag silently replaces its own earlier value.

    `type=int` takes 1e6 too, and numbers are finite; see `setting_types`.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.register("type", int, _argument(setting_types.whole_number))
        self.register("type", float, _argument(setting_types.number_from_text))

    def error(self, message: str) -> NoReturn:
        """Says what is wrong, and ends with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists all flags.)\n")


def _set_once(action, parser, namespace, value, flag) -> None:
    given = vars(namespace).setdefault("_given", {})
    before = given.setdefault(action.dest, (flag, value))
    if before[1] != value:
        name = flag or action.dest
        parser.error(
            f"{name} is given twice, with {before[1]} and {value}; it takes one value."
        )
    setattr(namespace, action.dest, value)


class _StoreOnce(argparse.Action):
    """Keeps a value; another one is an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        _set_once(self, parser, namespace, values, option_string)


class Switch(argparse.BooleanOptionalAction):
    """`--NAME` and `--no-NAME`; both is an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Sets the value that the flag's form says."""
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
    """Adds a subcommand with the flags that all have.

    Args:
      commands: What `ArgumentParser.add_subparsers` gave.
      name: As it is typed.
      run: Called with the arguments; returns the exit status.
      summary: One line of help.
    """
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only")
    parser.add_argument(
        "--log-level",
        type=str.lower,
        choices=_LEVELS,
        help="of the log; by default warning, with -v info, with -q error",
    )
    return parser


def set_log_level(arguments: argparse.Namespace) -> None:
    """Makes the log say as much as was asked for."""
    from absl import logging

    quieter_or_not = "error" if arguments.quiet else "warning"
    default = "info" if arguments.verbose else quieter_or_not
    logging.set_verbosity(arguments.log_level or default)


def fail(status: int, why: str) -> int:
    """Prints why, in the manner of a shell command, and returns the status."""
    say(f"prottrans: {why}")
    return status


def say(line: str) -> None:
    """Prints a line for people."""
    print(line, file=sys.stderr, flush=True)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, separated by commas."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def gib(size: int) -> str:
    """A number of bytes as people read it."""
    if size < 1 << 30:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / (1 << 30):.1f} GiB"


def duration(seconds: float) -> str:
    """A time span as people read it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
