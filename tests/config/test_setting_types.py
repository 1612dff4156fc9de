"""What a setting of each type takes and what it refuses."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Literal

import numpy as np
import pytest

from prottrans_jax.config import setting_types as types


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (1e6, int, 1_000_000),
        (np.int64(4), int, np.int64(4)),
        (2, float, 2),
        (True, bool, True),
        (0, bool, False),
        ("bfloat16", types.DType, "bfloat16"),
        (None, int | None, None),
        (8.0, int | None, 8),
        (-1, int | Literal[-1], -1),
        ({"inputs": 512.0}, Mapping[str, int], {"inputs": 512}),
        ([64.0, 2], tuple[int, int] | None, [64, 2]),
        (["relu"], tuple[str, ...], ["relu"]),
        (0.5, float | Callable[[Any], Any], 0.5),
        (types.UNKNOWN, int, types.UNKNOWN),
        ("anything", Any, "anything"),
    ],
)
def test_value_of_the_type_is_taken(value, kind, expected):
    taken = types.coerce(value, kind)
    assert taken == expected and type(taken) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (0.5, int, "a whole number, 0 or more"),
        (-3, int, "a whole number, 0 or more"),
        (True, int, "a whole number"),
        ("10", int, "a whole number"),
        ([1], int, "a whole number"),
        (None, int, "a whole number"),
        (float("nan"), float, "a finite number"),
        (float("inf"), float, "a finite number"),
        (float("nan"), int, "a whole number"),
        ("True", bool, "True or False"),
        (2, bool, "True or False"),
        (1.0, bool, "True or False"),
        (3, str, "text in quotes"),
        ("relu", tuple[str, ...], "a list (text in quotes each)"),
        ({"inputs": "512"}, Mapping[str, int], "a dictionary"),
        ([1, 2, 3], tuple[int, int], "a list"),
        ("float99", types.DType, "the name of a dtype"),
        (3, types.Object, "an object"),
        ("x", int | None, "a whole number, 0 or more or None"),
        ("x", Sequence[str] | None, "a list"),
    ],
)
def test_other_value_is_refused_with_the_type_expected(value, kind, expected):
    with pytest.raises(ValueError) as error:
        types.coerce(value, kind)
    assert f"expected {expected}" in str(error.value)
    assert repr(value) in str(error.value)


def test_default_says_whether_none_or_a_negative_number_is_meant():
    assert types.coerce(None, int, None) is None
    assert types.coerce(-5, int, -1) == -5


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), ("1_000", 1000), ("1e6", 1_000_000), ("-3", -3)]
)
def test_whole_number_is_read_as_it_is_typed(text, number):
    assert types.whole_number(text) == number


@pytest.mark.parametrize("text", ["1.5", "ten", "", "nan", "inf", "1e400"])
def test_text_that_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        types.whole_number(text)


@pytest.mark.parametrize("read", [types.whole_number, lambda x: types.coerce(x, int)])
def test_whole_number_that_no_array_library_has_is_refused(read):
    with pytest.raises(ValueError, match=r"less than 2\^63"):
        read(2**63 if read is not types.whole_number else "1e300")


@dataclasses.dataclass(frozen=True)
class Options:
    length: int | None = None
    names: "Sequence[str]" = ()

    def __post_init__(self):
        types.check_fields(self, {"length": "length (--length)"})


def test_fields_of_options_take_their_types():
    assert Options(length=1e3).length == 1000
    with pytest.raises(ValueError, match=r"length \(--length\)='3': expected a whole"):
        Options(length="3")
    with pytest.raises(ValueError, match="names='a': expected a list"):
        Options(names="a")
