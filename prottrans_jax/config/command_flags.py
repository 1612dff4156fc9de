"""Flags of the mains: a mistake is reported in one line, with exit status 2.

absl silently uses the last value of a flag that is given twice, and ends with status 1
at an unknown flag and after --help. It accepts NaN and negative counts, and refuses 1e6
as a whole number.
"""

from collections.abc import Callable, Iterable, Sequence
import os
import sys
from typing import NoReturn

from absl import app, flags

from prottrans_jax import printable
from prottrans_jax.config import setting_types, t5x_names


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """`absl.app.run` with flags parsed by `parse`."""
    printable.guard_logs()
    app.run(main, argv=argv, flags_parser=parse)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags; returns the other arguments.

    Args:
      argv: The program, then its arguments.
      values: The flags.

    Raises:
      SystemExit: With status 2 after a one-line error: an unknown flag, an invalid
        value, or a second value of a flag that takes one. With status 0 after --help.
    """
    single = [
        flag
        for of_module in values.flags_by_module_dict().values()
        for flag in of_module
        if not isinstance(flag, flags.MultiFlag)
    ]
    for flag in single:
        flag.allow_overwrite, flag.present = False, 0
        flag.parser = _number_parser(flag) or flag.parser
    try:
        return values(argv)
    except SystemExit:
        # absl exits with status 1 after --help.
        sys.exit(0)
    except flags.IllegalFlagValueError as error:
        _fail(_explain_twice(str(error)))
    except flags.UnrecognizedFlagError as error:
        _fail(t5x_names.flag(error.flagname) or str(error))
    except flags.Error as error:
        _fail(str(error))
    finally:
        for flag in single:
            flag.allow_overwrite = True


def values_of(items: Iterable[str]) -> list[str]:
    """Values of a flag that may be repeated, and may hold several by commas."""
    parser = flags.ListParser()
    return [value for item in items for value in parser.parse(item)]


class _WholeNumber(flags.IntegerParser):
    def convert(self, argument: int | str) -> int:
        return setting_types.whole_number(str(argument))


class _Number(flags.FloatParser):
    def convert(self, argument: float | str) -> float:
        return setting_types.number_from_text(str(argument))


def _number_parser(flag: flags.Flag) -> flags.ArgumentParser | None:
    """Parser for a flag of numbers, which refuses negative counts; None: not one."""
    parser, default = flag.parser, flag.default
    if type(parser) is flags.IntegerParser:
        lower = parser.lower_bound
        if lower is None and (default is None or default >= 0):
            lower = 0
        return _WholeNumber(lower, parser.upper_bound)
    if type(parser) is flags.FloatParser:
        return _Number(parser.lower_bound, parser.upper_bound)
    return None


def _explain_twice(message: str) -> str:
    flag, is_repeated, first_value = message.partition(": already defined as ")
    if not is_repeated:
        return message
    return (
        f"{flag.removeprefix('flag ')} is the second value of this flag, which takes "
        f"one; the first is {first_value}."
    )


def _fail(message: str) -> NoReturn:
    program = os.path.basename(sys.argv[0]).removesuffix(".py")
    line = " ".join(message.split())
    line = printable.plain(f"{program}: {line} (--help lists all flags.)")
    print(line, file=sys.stderr)
    sys.exit(2)
