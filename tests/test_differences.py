"""Differences of two trees of settings, as errors list them."""

import pytest

from prottrans_jax import differences


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b: 1 -> 2"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b: 1 -> (absent)"),
        ({}, {"a": False}, "a: (absent) -> False"),
        ({"a": None}, {"a": "x"}, "a: none -> x"),
        ({"a": None}, {"a": "none"}, "a: None -> 'none'"),
        ({"a": ["x", "y"]}, {"a": ["x"]}, "a: x, y -> x"),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, "a.1.b: 2 -> 3"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 3}]}, "a.1: (absent) -> (b=3)"),
        ({"a": {"type": "X", "c": 1}}, {"a": {"type": "Y", "c": 1}}, "a: X -> Y"),
        ({"a": 1}, {"a": {"type": "X", "c": 1}}, "a: 1 -> X(c=1)"),
    ],
)
def test_a_difference_is_listed_by_its_place(before, now, line):
    assert differences.lines(before, now) == [line]


def test_every_difference_has_its_line():
    before = {"b": 1, "a": {"d": 0, "type": "X"}, "c": 5}
    now = {"b": 2, "a": {"d": 1, "type": "Y"}, "c": 5}
    assert differences.lines(before, now) == ["a: X -> Y", "a.d: 0 -> 1", "b: 1 -> 2"]


def test_tuples_equal_the_lists_that_json_makes_of_them():
    assert not differences.lines({"a": ((1, 2), 3)}, {"a": [[1, 2], 3]})
