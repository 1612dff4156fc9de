"""`--config FILE`: flags of a command from a YAML or JSON file.

Keys are names of flags, with `-` or `_`. What is given on the command line wins; the
input and the output are given there only, so that one file serves many runs.
"""

import argparse
import difflib
import os
from typing import Any

from prottrans_jax.files import paths

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
            defaults[flags[name].dest] = _value(flags[name], value)
        except ValueError as error:
            faults.append(f"  {key}: {error}")
    if faults:
        raise ValueError("\n".join([f"--config {path}:", *faults]))
    parser.set_defaults(**defaults)


def _read(path: str | os.PathLike) -> dict[Any, Any]:
    import yaml

    text = paths.local(path, "--config").read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)  # JSON is YAML.
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: neither YAML nor JSON: {error}") from None
    if not isinstance(content, dict | None):
        raise ValueError(
            f"--config {path}: a {type(content).__name__}, not a mapping of flags to "
            "values such as `max-length: 3000`."
        )
    return content or {}


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
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if action.type is int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (isinstance(value, float) and number != value):
            raise ValueError(f"{value!r} is no whole number.")
        value = number
    else:
        value = str(value)
    if action.choices and value not in action.choices:
        known = ", ".join(map(str, action.choices))
        raise ValueError(f"{value!r} is not known. Choose one of {known}.")
    return value
