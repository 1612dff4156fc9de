"""`--config FILE`: flags of a command from a YAML or JSON file.

Keys are names of flags, with `-` or `_`. What is given on the command line wins; the
input and the output are given there only, so that one file serves many runs.
"""

import argparse
from collections.abc import Callable
import datetime
import difflib
import os
from typing import Any

from prottrans_jax.config import setting_types
from prottrans_jax.files import paths

_NUMBERS: dict[Any, Callable[[str], Any]] = {
    int: setting_types.whole_number,
    float: setting_types.number_from_text,
}
_ELSEWHERE = ("input", "output", "config", "help")


def set_defaults(parser: argparse.ArgumentParser, path: str | os.PathLike) -> None:
    """Makes the values of a file the defaults of a parser.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is no mapping of flags to values; lists every fault.
    """
    flags = _flags(parser)
    defaults: dict[str, Any] = {}
    faults = []
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        try:
            if name in _ELSEWHERE:
                raise ValueError(f"--{name} is given on the command line only.")
            if name not in flags:
                close = difflib.get_close_matches(name, flags.keys() - {*_ELSEWHERE})
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                raise ValueError(f"there is no flag --{name}.{hint}")
            if flags[name].dest in defaults:
                raise ValueError("a second value of this flag.")
            defaults[flags[name].dest] = _value(flags[name], value)
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if len(faults) == 1:
        raise ValueError(f"--config {path}: {faults[0]}")
    if faults:
        raise ValueError("\n  ".join([f"--config {path}:", *faults]))
    parser.set_defaults(**defaults)


def _read(path: str | os.PathLike) -> dict[Any, Any]:
    import yaml

    try:
        text = paths.local(path, "--config").read_text(encoding="utf-8")
        _refuse_repeated_keys(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)  # JSON is YAML.
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path}: is no text in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(
            f"--config {path}{where}: neither YAML nor JSON: {why}."
        ) from None
    except _RepeatedKeyError as error:
        raise ValueError(f"--config {path}, {error}") from None
    if not isinstance(content, dict | None):
        raise ValueError(
            f"--config {path}: a {type(content).__name__}, not a mapping of flags to "
            "values such as `max-length: 3000`."
        )
    return content or {}


class _RepeatedKeyError(Exception):
    pass


def _refuse_repeated_keys(node: Any) -> None:
    """YAML's own loader would keep the last of several values in silence."""
    lines: dict[str, int] = {}
    pairs = node.value if getattr(node, "id", "") == "mapping" else ()
    for key, _ in pairs:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise _RepeatedKeyError(
                f"line {line}: {key.value} has a value already, in line "
                f"{lines[key.value]}."
            )
        lines[key.value] = line


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    # argparse has no public list of its flags.
    return {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and not option.startswith("--no-resume")
    }


def _value(action: argparse.Action, value: Any) -> Any:
    """What the flag would give for the value, which is checked like the flag's."""
    if value is None:
        return action.default
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false.")
        return value
    if isinstance(action.default, list):
        return [_text(item) for item in (value if isinstance(value, list) else [value])]
    if action.type in _NUMBERS:
        if isinstance(value, bool) and action.choices:  # A switch that takes 0 or 1.
            value = int(value)
        if isinstance(value, str):  # 1e6 is a number, but not by YAML's rules.
            value = _NUMBERS[action.type](value)
        # Which numbers are too small is said by those who use them.
        value = setting_types.coerce(value, action.type, default=-1)
    elif isinstance(value, list):
        value = ",".join(_text(item) for item in value)
    else:
        value = _text(value)
    if action.choices and value not in action.choices:
        known = ", ".join(map(str, action.choices))
        raise ValueError(f"{value!r} is not known. Choose one of {known}.")
    return value


def _text(value: Any) -> str:
    """A value of YAML as the text that would be typed."""
    # Of 1.10 nothing tells that it was no 1.1.
    if isinstance(value, str | int | datetime.date) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r}: expected {setting_types.describe(str)}.")
