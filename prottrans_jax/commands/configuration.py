"""`--config FILE`: reads flags of a command from a YAML or JSON file.

Keys are names of flags, with `-` or `_`. Flags on the command line override the file.
Input and output can only be set on the command line, so that one file serves many runs.
"""

import argparse
from collections.abc import Callable, Iterable
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
MAX_BYTES = 1 << 20
_COMMAND_LINE_ONLY = ("input", "output", "config", "help")


def set_defaults(parser: argparse.ArgumentParser, path: str | os.PathLike) -> None:
    """Sets the defaults of a parser to the values in a file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not a mapping of flags to values; lists every fault.
    """
    flags = _flags(parser)
    defaults: dict[str, Any] = {}
    faults = []
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        try:
            if name in _COMMAND_LINE_ONLY:
                raise ValueError(f"--{name} can only be set on the command line.")
            if name not in flags:
                similar = difflib.get_close_matches(
                    name, flags.keys() - {*_COMMAND_LINE_ONLY}
                )
                hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
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
        file = paths.local(path, "--config")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise ValueError(
                f"--config {path}: {size:,} bytes; a file of flags has at most "
                f"{MAX_BYTES:,}."
            )
        text = file.read_text(encoding="utf-8")
        _refuse_aliases(path, yaml.scan(text))
        _refuse_repeated_keys(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)  # JSON is YAML.
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path}: is not text in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(
            f"--config {path}{line}: neither YAML nor JSON: {reason}."
        ) from None
    except _RepeatedKeyError as error:
        raise ValueError(f"--config {path}, {error}") from None
    except RecursionError:
        raise ValueError(
            f"--config {path}: its brackets are nested too deeply."
        ) from None
    if not isinstance(content, dict | None):
        raise ValueError(
            f"--config {path}: a {type(content).__name__}, not a mapping of flags to "
            "values such as `max-length: 3000`."
        )
    return content or {}


class _RepeatedKeyError(Exception):
    pass


def _refuse_aliases(path: str | os.PathLike, tokens: Iterable[Any]) -> None:
    """Raises for `*name`: aliases of aliases make a short file a huge value."""
    for token in tokens:
        if type(token).__name__ == "AliasToken":
            raise ValueError(
                f"--config {path}, line {token.start_mark.line + 1}: aliases such as "
                f"*{token.value} are not supported. Write the value again."
            )


def _refuse_repeated_keys(node: Any) -> None:
    """Raises for repeated keys, of which YAML's loader silently keeps the last."""
    lines: dict[str, int] = {}
    pairs = node.value if getattr(node, "id", "") == "mapping" else ()
    for key, _ in pairs:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise _RepeatedKeyError(
                f"line {line}: {key.value} already has a value, in line "
                f"{lines[key.value]}."
            )
        lines[key.value] = line


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    # argparse has no public list of its options.
    return {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and not option.startswith("--no-resume")
    }


def _value(action: argparse.Action, value: object) -> Any:
    """Checks and converts a value as the flag does on the command line."""
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
        # Lower limits are checked where the number is used.
        value = setting_types.coerce(value, action.type, default=-1)
    elif isinstance(value, list):
        value = ",".join(_text(item) for item in value)
    else:
        value = _text(value)
    if action.choices and value not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise ValueError(f"{value!r} is not known. Choose one of {choices}.")
    return value


def _text(value: object) -> str:
    """A YAML value as the text of a command line."""
    # Not float: YAML does not distinguish 1.10 from 1.1.
    if isinstance(value, str | int | datetime.date) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r}: expected {setting_types.describe(str)}.")
