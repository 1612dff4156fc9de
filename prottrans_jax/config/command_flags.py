"""Flags of the mains: a mistake in them is one line, with exit status 2.

absl takes a flag that is given twice by its last value, in silence, and ends with
status 1 at a flag that it does not know, and after --help. It takes NaN for a number
and a negative count, and does not take 1e6 for a whole number.
"""

from collections.abc import Callable, Iterable, Sequence
import os
import sys
from typing import NoReturn

from absl import app, flags

from prottrans_jax.config import setting_types


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """`absl.app.run` with the flags read by `parse`."""
    app.run(main, argv=argv, flags_parser=parse)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Sets the flags; returns the arguments that are none.

    Args:
      argv: The program, then its arguments.
      values: The flags.

    Raises:
      SystemExit: With status 2, after a line that says what is wrong: no such flag, a
        value that is none of it, or a second value where only one is kept. With status
        0 after --help.
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
        # absl ends with 1 after it has printed the help that was asked for.
        sys.exit(0)
    except flags.IllegalFlagValueError as error:
        _fail(_explain_twice(str(error)))
    except flags.Error as error:
        _fail(str(error))
    finally:
        for flag in single:
            flag.allow_overwrite = True


def values_of(items: Iterable[str]) -> list[str]:
    """Values of a flag that may be repeated, and hold several with commas between."""
    parser = flags.ListParser()
    return [value for item in items for value in parser.parse(item)]


class _WholeNumber(flags.IntegerParser):
    def convert(self, argument: int | str) -> int:
        return setting_types.whole_number(str(argument))


class _Number(flags.FloatParser):
    def convert(self, argument: float | str) -> float:
        return setting_types.number_from_text(str(argument))


def _number_parser(flag: flags.Flag) -> flags.ArgumentParser | None:
    """What reads the values of a flag of numbers; counts are not negative."""
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
    flag, twice, before = message.partition(": already defined as ")
    if not twice:
        return message
    return (
        f"{flag.removeprefix('flag ')} is the second value of this flag, which takes "
        f"one; the first is {before}."
    )


def _fail(why: str) -> NoReturn:
    program = os.path.basename(sys.argv[0]).removesuffix(".py")
    line = " ".join(why.split())
    print(f"{program}: {line} (--help lists all flags.)", file=sys.stderr)
    sys.exit(2)
