"""References of a configuration against what the parameters that take them need.

An object of the wrong class would be noticed only in the middle of building a run, by
an AttributeError. What a class is and has stands in its source.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
import functools
import types
import typing
from typing import Any

from prottrans_jax.config import reading, setting_types, signatures, targets

_PLAIN = (int, float, str, bool, None, type(None))


def problem(value: Any, kind: Any, known: Mapping[str, targets.Target]) -> str:
    """Why a reference in `value` is not what its place takes; "" if nothing is wrong.

    Only classes and functions of the package are judged: no other source is read.

    Args:
      value: Of a binding, macros followed; may be a dictionary of references.
      kind: Annotation of the parameter, as `signatures` gives it.
      known: What each selector names.
    """
    for reference, needed in _places(value, kind):
        target = known.get(reference.selector)
        symbol = target.symbol if target is not None else None
        if symbol is None or Any in needed:
            continue
        result = signatures.result(symbol)
        if not reference.call:
            if not any(_is_callable(member) for member in needed):
                return f"{reference!r}: without () it is the {symbol.kind} itself"
            if symbol.kind == "function" and _is_callable(result):
                return f"{reference!r}: without () it is what makes the function"
        elif not any(_fits(result, member) for member in needed):
            return f"{reference!r}: it gives {setting_types.describe(result)}"
    return ""


def examples(kind: Any, imports: Mapping[str, str]) -> str:
    """', such as @t5.T5()' or "": classes of the imports that a parameter takes.

    Args:
      kind: Annotation of the parameter, as `signatures` gives it.
      imports: Name used in selectors -> module.
    """
    needed = [m for m in _leaves(kind) if _symbol(m) is not None]
    fitting: dict[signatures.Symbol, str] = {}
    for name, module in imports.items():
        source = signatures.find(module)
        for public in source.public() if source is not None and needed else ():
            assert source is not None
            symbol = source.lookup(public)
            if symbol is None or symbol.kind != "class":
                continue
            if not (symbol.module + ".").startswith(module + "."):  # Imported there.
                continue
            if any(_fits(signatures.result(symbol), member) for member in needed):
                fitting[symbol] = f"@{name}.{public}()"
    # The base of a family is only there to derive from.
    above = (base for symbol in fitting for base in _ancestors(symbol)[1:])
    bases = {base for base in above if len(_ancestors(base)) == 1}
    named = [text for symbol, text in fitting.items() if symbol not in bases]
    return f", such as {' or '.join(named[:3])}" if named else ""


def _places(value: Any, kind: Any) -> Iterator[tuple[reading.Reference, list[Any]]]:
    """Each reference in a value with the kinds of which its place takes any."""
    if isinstance(value, reading.Reference):
        yield value, _members(kind)
    elif isinstance(value, dict):
        for member in _members(kind):
            if typing.get_origin(member) is not None and _is_mapping(member):
                for item in value.values():
                    yield from _places(item, typing.get_args(member)[1])


def _fits(result: Any, needed: Any) -> bool:
    """Whether a result of one kind may be a value of another; True if not known."""
    if result in (int, float, str, bool):
        if needed in _PLAIN:
            return needed is result or (needed is float and result is int)
        return not (_is_callable(needed) or _symbol(needed))
    if _is_callable(result):
        return not (needed in _PLAIN or _symbol(needed))
    symbol, needed_symbol = _symbol(result), _symbol(needed)
    if symbol is None:
        return True
    if needed in _PLAIN or typing.get_origin(needed) is typing.Literal:
        return False
    has = _attributes(symbol)
    if has is None:
        return True
    if _is_callable(needed):
        return "__call__" in has
    if needed_symbol is None or needed_symbol in _ancestors(symbol):
        return True
    return _is_protocol(needed_symbol) and (_attributes(needed_symbol) or has) <= has


def _members(kind: Any) -> list[Any]:
    """The members of a union, or the one kind that it is."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [m for member in typing.get_args(kind) for m in _members(member)]
    return [kind]


def _leaves(kind: Any) -> list[Any]:
    """`_members`, and for dictionaries those of their values."""
    return [
        leaf
        for member in _members(kind)
        for leaf in (
            _leaves(typing.get_args(member)[1])
            if _is_mapping(member) and typing.get_args(member)
            else [member]
        )
    ]


def _is_mapping(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in (dict, Mapping)


def _is_callable(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) is Callable


def _symbol(kind: Any) -> signatures.Symbol | None:
    """The class whose objects a kind is; None for another kind."""
    is_object = isinstance(kind, type) and issubclass(kind, signatures.ObjectOf)
    return kind.symbol if is_object else None


# --------------------------------------------------------------------- classes


def _bases(symbol: signatures.Symbol) -> list[signatures.Symbol | str]:
    """Base classes: symbols of ours, names of what is not."""
    module = signatures.find(symbol.module)
    assert module is not None
    assert isinstance(symbol.node, ast.ClassDef)
    bases: list[signatures.Symbol | str] = []
    for base in symbol.node.bases:
        name = ast.unparse(base)
        found = signatures.resolve(module, name)
        ours = found is not None and isinstance(found.node, ast.ClassDef)
        bases.append(found if found is not None and ours else name)
    return bases


@functools.cache
def _ancestors(symbol: signatures.Symbol) -> tuple[signatures.Symbol, ...]:
    """A class and those of ours that it is derived from."""
    found = [symbol]
    for base in _bases(symbol):
        if isinstance(base, signatures.Symbol):
            found += _ancestors(base)
    return tuple(found)


def _is_protocol(symbol: signatures.Symbol) -> bool:
    return any(str(base).endswith("Protocol") for base in _bases(symbol))


@functools.cache
def _attributes(symbol: signatures.Symbol) -> frozenset[str] | None:
    """Names of methods and fields; None if a base is of a library that may add some."""
    assert isinstance(symbol.node, ast.ClassDef)
    names: set[str] = set()
    for base in _bases(symbol):
        if isinstance(base, signatures.Symbol):
            inherited = _attributes(base)
            if inherited is None:
                return None
            names |= inherited
        elif not base.endswith(("Protocol", "nn.Module", "NamedTuple", "Generic")):
            return None
    for node in ast.walk(symbol.node):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            assigned = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in assigned:
                if isinstance(target, ast.Name):
                    names.add(target.id)
                elif isinstance(target, ast.Attribute):  # self.name = ...
                    names.add(target.attr)
    return frozenset(names)
