"""Checks references of a configuration against the types of their parameters.

Without these checks an object of the wrong class would cause an AttributeError while a
run is built. Base classes and attributes are read from source.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
import functools
import types
import typing
from typing import Any

from prottrans_jax.config import reading, setting_types, signatures, targets

_PLAIN = (int, float, str, bool, None, type(None))


def problem(
    value: object, kind: object, known_targets: Mapping[str, targets.Target]
) -> str:
    """Why a reference in `value` has the wrong type; "" if nothing is wrong.

    Only classes and functions of the package are checked: no other source is read.

    Args:
      value: Value of a binding without macros; may be a dictionary of references.
      kind: Annotation of the parameter, from `signatures`.
      known_targets: Selector -> its function or class.
    """
    for reference, needed in _places(value, kind):
        target = known_targets.get(reference.selector)
        symbol = target.symbol if target is not None else None
        if symbol is None or Any in needed:
            continue
        result = signatures.result(symbol)
        if not reference.call:
            if not any(_is_callable(member) for member in needed):
                return f"{reference!r}: without () it is the {symbol.kind} itself"
            # The function is what the call returns, such as a learning-rate schedule.
            if _is_callable(result) or _is_class_of_functions(symbol):
                return f"{reference!r}: without () it is the factory of the function"
        elif not any(_fits(result, member) for member in needed):
            return f"{reference!r}: it gives {setting_types.describe(result)}"
    return ""


def examples(kind: object, imports: Mapping[str, str]) -> str:
    """', such as @t5.T5()' or "": imported classes that fit a parameter.

    Args:
      kind: Annotation of the parameter, from `signatures`.
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
    # Base classes are no examples: they are not used directly.
    ancestors = (base for symbol in fitting for base in _ancestors(symbol)[1:])
    bases = {base for base in ancestors if len(_ancestors(base)) == 1}
    texts = [text for symbol, text in fitting.items() if symbol not in bases]
    return f", such as {' or '.join(texts[:3])}" if texts else ""


def _places(
    value: object, kind: object
) -> Iterator[tuple[reading.Reference, list[Any]]]:
    """Each reference in a value, with the kinds that are allowed at its place."""
    if isinstance(value, reading.Reference):
        yield value, _members(kind)
    elif isinstance(value, dict):
        for member in _members(kind):
            if typing.get_origin(member) is not None and _is_mapping(member):
                for item in value.values():
                    yield from _places(item, typing.get_args(member)[1])


def _fits(result: object, needed: object) -> bool:
    """Whether a result of one kind may be a value of another; True if unknown."""
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
    attributes = _attributes(symbol)
    if attributes is None:
        return True
    if _is_callable(needed):
        return "__call__" in attributes
    if needed_symbol is None or needed_symbol in _ancestors(symbol):
        return True
    needed_attributes = _attributes(needed_symbol) or attributes
    return _is_protocol(needed_symbol) and needed_attributes <= attributes


def _members(kind: object) -> list[Any]:
    """The members of a union; any other kind alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [m for member in typing.get_args(kind) for m in _members(member)]
    return [kind]


def _leaves(kind: object) -> list[Any]:
    """Like `_members`; a dictionary is replaced by the kinds of its values."""
    return [
        leaf
        for member in _members(kind)
        for leaf in (
            _leaves(typing.get_args(member)[1])
            if _is_mapping(member) and typing.get_args(member)
            else [member]
        )
    ]


def _is_mapping(kind: object) -> bool:
    return (typing.get_origin(kind) or kind) in (dict, Mapping)


def _is_callable(kind: object) -> bool:
    return (typing.get_origin(kind) or kind) is Callable


def _is_class_of_functions(symbol: signatures.Symbol) -> bool:
    return symbol.kind == "class" and "__call__" in (_attributes(symbol) or ())


def _symbol(kind: Any) -> signatures.Symbol | None:
    """The class of a kind that stands for objects; None for other kinds."""
    is_object = isinstance(kind, type) and issubclass(kind, signatures.ObjectOf)
    return kind.symbol if is_object else None


# --------------------------------------------------------------------- classes


def _bases(symbol: signatures.Symbol) -> list[signatures.Symbol | str]:
    """Base classes: symbols of ours, names of others."""
    module = signatures.find(symbol.module)
    assert module is not None
    assert isinstance(symbol.node, ast.ClassDef)
    bases: list[signatures.Symbol | str] = []
    for base in symbol.node.bases:
        name = ast.unparse(base)
        base_symbol = signatures.resolve(module, name)
        if base_symbol is not None and isinstance(base_symbol.node, ast.ClassDef):
            bases.append(base_symbol)
        else:
            bases.append(name)
    return bases


@functools.cache
def _ancestors(symbol: signatures.Symbol) -> tuple[signatures.Symbol, ...]:
    """A class and its direct and indirect bases among our classes."""
    ancestors = [symbol]
    for base in _bases(symbol):
        if isinstance(base, signatures.Symbol):
            ancestors += _ancestors(base)
    return tuple(ancestors)


def _is_protocol(symbol: signatures.Symbol) -> bool:
    return any(str(base).endswith("Protocol") for base in _bases(symbol))


@functools.cache
def _attributes(symbol: signatures.Symbol) -> frozenset[str] | None:
    """Names of methods and fields; None if a base class is not ours."""
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
