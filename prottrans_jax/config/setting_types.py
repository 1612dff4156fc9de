"""Converts values of settings to the types of their annotations, for every command.

Gin bindings, keys of a YAML file, flags and fields of option classes all pass through
`coerce`. It converts a value to its type, or refuses it with the value and the expected
type.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import numbers
import os
import types
import typing
from typing import Any

import ml_dtypes
import numpy as np


class DType:
    """Represents DTypeLike of JAX and numpy in annotations read from source."""


class Object:
    """Represents an instance of one of our classes: not a number, text or a list.

    A subclass represents the instances of one class.
    """

    words = "an object, as @module.Class()"


# A value of unknown type, such as the result of a call.
UNKNOWN = object()

# Array libraries have no larger integers.
_INT_END = 2**63
_TOO_LARGE = "a whole number must be less than 2^63, about 9.2e18"

_PLAIN = str | bool | numbers.Number | Mapping | list | tuple | set


def coerce(value: object, kind: object, default: object = UNKNOWN) -> Any:
    """Converts a value to its type.

    A whole number written as a float (1e6) becomes an int, and 0 and 1 become bools. An
    int may be negative only if its default is, or if the annotation names the value
    (`int | Literal[-1]`). NaN and infinity are refused.

    Args:
      value: Value of a setting.
      kind: Annotation as a typing object; unknown ones count as `Any`.
      default: Default of the parameter; None allows None.

    Raises:
      ValueError: "{value!r}: expected a whole number, 0 or more".
    """
    if value is UNKNOWN or (value is None and default is None):
        return value
    result = _match(value, kind, _is_negative(default))
    if result is _NO:
        raise ValueError(f"{value!r}: expected {describe(kind, default)}")
    if isinstance(result, int) and not -_INT_END <= result < _INT_END:
        raise ValueError(f"{value!r}: {_TOO_LARGE}")
    return result


def describe(kind: object, default: object = UNKNOWN) -> str:
    """The type in words, for messages."""
    return " or ".join(dict.fromkeys(_words(kind, _is_negative(default))))


def check_fields(options: Any, names: Mapping[str, str] | None = None) -> None:
    """Converts the fields of a frozen dataclass to their types, in place.

    Args:
      options: Instance; its class has the annotations.
      names: Field -> its name for users, if it differs.

    Raises:
      ValueError: Names the field, its value and the expected type.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        default = field.default
        try:
            value = coerce(getattr(options, field.name), hints[field.name], default)
        except ValueError as error:
            name = (names or {}).get(field.name, field.name)
            raise ValueError(f"{name}={error}.") from None
        replace_fields(options, **{field.name: value})


def replace_fields(options: object, **values: Any) -> None:
    """Normalises fields of a frozen dataclass; for its own `__post_init__` only."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def check_range(
    name: str,
    value: float | None,
    least: float = 0,
    *,
    below: float = math.inf,
    exclusive: bool = False,
) -> None:
    """Raises if a number is out of range.

    Accepts None ("not set") and values traced by JAX.

    Args:
      name: Name of the setting, such as "AdamW.b1".
      value: Value of the setting.
      least: Minimum.
      below: Upper bound, exclusive.
      exclusive: Whether the minimum is exclusive, too.

    Raises:
      ValueError: "AdamW.b1=2: must be at least 0 and below 1."
    """
    if not isinstance(value, numbers.Real):
        return
    if (least < value if exclusive else least <= value) and value < below:
        return
    start = f"{'more than' if exclusive else 'at least'} {least}"
    end = f" and below {below}" if math.isfinite(below) else ""
    raise ValueError(f"{name}={value}: must be {start}{end}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError if a value, or an item of a tuple, is not one of `choices`."""
    for item in value if isinstance(value, tuple) else (value,):
        if item not in choices:
            raise ValueError(
                f"{name}={item!r} is not known. Choose one of {', '.join(choices)}."
            )


def whole_number(text: str) -> int:
    """Parses a whole number: 1000000, 1_000_000 or 1e6.

    Raises:
      ValueError: The text is not a whole number.
    """
    number: float
    try:
        number = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
    if number != number // 1:
        raise ValueError(f"{text!r}: expected {describe(int, -1)}")
    if not -_INT_END <= number < _INT_END:
        raise ValueError(f"{text!r}: {_TOO_LARGE}")
    return int(number)


def number_from_text(text: str) -> float:
    """Parses a finite number.

    Raises:
      ValueError: The text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: expected {describe(float)}")
    return number


# ------------------------------------------------------------------------ one type

_NO = object()


def _match(value: object, kind: object, negative: bool) -> Any:
    """The value converted to `kind`; `_NO` if it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _match(value, arguments[0], negative)
    if origin in (typing.Union, types.UnionType):
        results = [_match(value, member, negative) for member in arguments]
        # 3 is an int before it is a float; 1e6 for `int | float` stays as it is.
        same = [r for r in results if r is value]
        return next((r for r in [*same, *results] if r is not _NO), _NO)
    if origin is typing.Literal:
        same_type = [a for a in arguments if a == value and type(a) is type(value)]
        return value if same_type else _NO
    if kind in (None, type(None)):
        return value if value is None else _NO
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple(value, negative)
    base = origin or kind
    if base in (tuple, list, Sequence, Iterable):
        return _match_sequence(value, base, arguments, negative)
    if base in (dict, Mapping):
        return _match_mapping(value, arguments, negative)
    if base is Callable:
        return _NO if value is None or isinstance(value, _PLAIN) else value
    if isinstance(kind, type) and issubclass(kind, Object):
        return _NO if value is None or isinstance(value, _PLAIN) else value
    return value


def _match_bool(value: object, negative: bool) -> Any:
    del negative
    # Some users write 0 and 1.
    if isinstance(value, int | np.bool_) and value in (0, 1):
        return value if isinstance(value, bool) else bool(value)
    return _NO


def _match_int(value: object, negative: bool) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return _NO
    return value if int(value) >= 0 or negative else _NO


def _match_float(value: object, negative: bool) -> Any:
    del negative
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return _NO
    return value if math.isfinite(value) else _NO


def _match_str(value: object, negative: bool) -> Any:
    del negative
    return value if isinstance(value, str) else _NO


def _match_path(value: object, negative: bool) -> Any:
    del negative
    return value if isinstance(value, str | os.PathLike) else _NO


def _match_dtype(value: object, negative: bool) -> Any:
    del negative
    if isinstance(value, str):
        try:
            np.dtype(value)
        except TypeError:
            return value if hasattr(ml_dtypes, value) else _NO
        return value
    return _NO if value is None or isinstance(value, _PLAIN) else value


_SIMPLE: dict[Any, Callable[[Any, bool], Any]] = {
    bool: _match_bool,
    int: _match_int,
    float: _match_float,
    str: _match_str,
    os.PathLike: _match_path,
    DType: _match_dtype,
}


def _match_sequence(
    value: object, base: object, arguments: tuple, negative: bool
) -> Any:
    if not isinstance(value, list | tuple):
        if base not in (Sequence, Iterable) or isinstance(value, _PLAIN):
            return _NO
        return _NO if value is None else value
    if not arguments:
        return value
    if base is tuple and arguments[-1] is not Ellipsis:
        if len(arguments) != len(value):
            return _NO
        kinds = arguments
    else:
        kinds = arguments[:1] * len(value)
    items = [_match(v, k, negative) for v, k in zip(value, kinds, strict=True)]
    if any(item is _NO for item in items):
        return _NO
    unchanged = all(a is b for a, b in zip(items, value, strict=True))
    return value if unchanged else type(value)(items)


def _match_mapping(value: object, arguments: tuple, negative: bool) -> Any:
    if not isinstance(value, Mapping):
        return _NO
    if not arguments:
        return value
    keys = [_match(key, arguments[0], negative) for key in value]
    items = [_match(item, arguments[1], negative) for item in value.values()]
    if any(x is _NO for x in [*keys, *items]):
        return _NO
    unchanged = all(a is b for a, b in zip(items, value.values(), strict=True))
    return value if unchanged else dict(zip(keys, items, strict=True))


def _is_negative(default: object) -> bool:
    return isinstance(default, numbers.Real) and default < 0


def _words(kind: object, negative: bool) -> list[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _words(arguments[0], negative)
    if origin in (typing.Union, types.UnionType):
        return [word for member in arguments for word in _words(member, negative)]
    if origin is typing.Literal:
        return [repr(argument) for argument in arguments]
    if kind is int and not negative:
        return ["a whole number, 0 or more"]
    if isinstance(kind, type) and issubclass(kind, Object):
        return [kind.words]
    base = origin or kind
    words = _WORDS.get(base)
    if words is None:
        return [getattr(base, "__name__", str(base))]
    if base in (tuple, list, Sequence, Iterable) and arguments:
        return [f"{words} ({_words(arguments[0], negative)[0]} each)"]
    if base in (dict, Mapping) and arguments:
        return [f"{words} (each value {_words(arguments[1], negative)[0]})"]
    return [words]


_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text in quotes",
    None: "None",
    type(None): "None",
    os.PathLike: "a path",
    DType: "the name of a dtype such as 'bfloat16'",
    Callable: "a function",
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
    Iterable: "a list",
    dict: "a dictionary",
    Mapping: "a dictionary",
}
