"""Lists in which values two trees of settings differ, for error messages."""

from collections.abc import Iterator, Mapping
from typing import Any

from prottrans_jax import setting_trees

_ABSENT = object()


def lines(before: setting_trees.Tree, now: setting_trees.Tree) -> list[str]:
    """One line "place: before -> now" for each value that differs.

    Mappings are compared key by key, lists of mappings item by item, and other values
    as a whole. A tuple equals the same list, as trees may come from JSON. The place of
    a class name is that of its object.

    >>> lines({"seed": 3, "model": {"d_ff": 7}}, {"seed": 3, "model": {"d_ff": 9}})
    ['model.d_ff: 7 -> 9']

    Args:
      before: A tree of mappings, lists and plain values.
      now: Another such tree.
    """
    differences = []
    for place, old, new in _differences("", before, now):
        texts = _in_words(old), _in_words(new)
        if texts[0] == texts[1]:  # For example None and "none".
            texts = repr(old), repr(new)
        differences.append(f"{place}: {texts[0]} -> {texts[1]}")
    return differences


def _differences(
    place: str, before: object, now: object
) -> Iterator[tuple[str, Any, Any]]:
    before, now = _by_index(before), _by_index(now)
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = sorted(
            before.keys() | now.keys(), key=lambda x: (x != setting_trees.TYPE, x)
        )
        for name in names:
            inner = (
                place
                if name == setting_trees.TYPE and place
                else f"{place}.{name}".lstrip(".")
            )
            values = before.get(name, _ABSENT), now.get(name, _ABSENT)
            yield from _differences(inner, *values)
    elif before != now:
        yield place, before, now


def _by_index(value: object) -> Any:
    """A list of mappings as a mapping from index to item; other tuples as lists."""
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(item, Mapping) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return [_by_index(item) for item in value]


def _in_words(value: object) -> str:
    if value is _ABSENT:
        return "(absent)"
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        fields = ", ".join(
            f"{name}={_in_words(x)}"
            for name, x in sorted(value.items())
            if name != setting_trees.TYPE
        )
        return f"{value.get(setting_trees.TYPE, '')}({fields})"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "[]"
    return str(value)
