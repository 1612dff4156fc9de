"""Signatures of the package's functions and classes, read from source.

Importing the configured modules would import TensorFlow, which is slow. The source
suffices to check whether a name or parameter exists, and its type.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import importlib.machinery
import importlib.util
import os
import pathlib
from typing import Any, Literal, Union

from prottrans_jax.config import setting_types

# A default that is not a literal.
COMPUTED = setting_types.UNKNOWN
# Fields that Flax adds to every module.
_LINEN_FIELDS = ("parent", "name")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter that gin may bind.

    Attributes:
      kind: Its annotation as a typing object; `Any` without an annotation.
      default: Literal default; `COMPUTED` if it is an expression.
      required: Whether there is no default.
    """

    kind: object
    default: object
    required: bool


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A definition that a dotted name refers to.

    Attributes:
      kind: "function", "class", "module" or "value".
      module: Module that defines it (or the module itself).
      node: Its definition; None for modules, and for definitions outside the package.
    """

    kind: str
    module: str
    node: ast.AST | None = None


class Module:
    """The names of one source file of the package."""

    def __init__(self, name: str, path: pathlib.Path):
        self.name = name
        self.is_package = path.name == "__init__.py"
        self._names: dict[str, ast.AST | tuple[str, str]] = {}
        for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
            self._add(node)

    def _add(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self._names[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self._names[target.id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            self._names[node.target.id] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a.
                bound = alias.asname or alias.name.partition(".")[0]
                self._names[bound] = (alias.name if alias.asname else bound, "")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                self._names[alias.asname or alias.name] = (node.module, alias.name)

    def public(self) -> list[str]:
        """Names without a leading underscore."""
        return [name for name in self._names if not name.startswith("_")]

    def lookup(self, name: str) -> Symbol | None:
        """The definition of `name` in this module; None if there is none."""
        entry = self._names.get(name)
        if entry is None:
            return (
                find_module_symbol(f"{self.name}.{name}") if self.is_package else None
            )
        if isinstance(entry, tuple):
            module, attribute = entry
            if not attribute:
                return Symbol("module", module)
            submodule = find_module_symbol(f"{module}.{attribute}")
            if submodule is not None:
                return submodule
            source = find(module)
            if source is None:
                return Symbol("value", module)
            return source.lookup(attribute)
        if isinstance(entry, ast.FunctionDef):
            return Symbol("function", self.name, entry)
        if isinstance(entry, ast.ClassDef):
            return Symbol("class", self.name, entry)
        return Symbol("value", self.name, entry)


@functools.cache
def find(name: str) -> Module | None:
    """The source of a module of the package; None for other names."""
    path = locate(name)
    return None if path is None else Module(name, path)


def find_module_symbol(name: str) -> Symbol | None:
    """A module of the package as a symbol; None for other names."""
    return Symbol("module", name) if locate(name) is not None else None


@functools.cache
def locate(name: str) -> pathlib.Path | None:
    """Source file of a module of the package, located without importing anything.

    `importlib.util.find_spec` would import parent packages, and `tasks` imports SeqIO.
    """
    root, *rest = name.split(".")
    if root != __name__.partition(".")[0]:
        return None
    full, spec = root, importlib.util.find_spec(root)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full = f"{full}.{part}"
        if full.count(".") == 1:  # The parent is already imported.
            spec = importlib.util.find_spec(full)
        else:
            places = spec.submodule_search_locations or []
            spec = importlib.machinery.PathFinder.find_spec(full, list(places))
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return pathlib.Path(spec.origin)


def parameters(symbol: Symbol) -> dict[str, Parameter] | None:
    """Parameters of a function or class of ours by name.

    None: it accepts any keyword, or the source is not sufficient.
    """
    module = find(symbol.module)
    if module is None:
        return None
    if isinstance(symbol.node, ast.FunctionDef):
        return _of_function(module, symbol.node)
    if isinstance(symbol.node, ast.ClassDef):
        return _of_class(module, symbol.node)
    return None


class ObjectOf(setting_types.Object):
    """Kind of the instances of one of our classes; `symbol` is the class."""

    symbol: Symbol


@functools.cache
def _object_of(symbol: Symbol) -> type[ObjectOf]:
    assert isinstance(symbol.node, ast.ClassDef)
    words = f"an object of type {symbol.node.name}"
    return type(symbol.node.name, (ObjectOf,), {"symbol": symbol, "words": words})


def result(symbol: Symbol) -> Any:
    """Kind of the result of calling a function or class of ours; `Any` if unknown."""
    if isinstance(symbol.node, ast.ClassDef):
        return _object_of(symbol)
    module = find(symbol.module)
    if module is None or not isinstance(symbol.node, ast.FunctionDef):
        return Any
    return _kind(module, symbol.node.returns)


def member(symbol: Symbol, name: str) -> tuple[Symbol | None, list[str]]:
    """A method of a class; without such a method, None and the public names."""
    assert isinstance(symbol.node, ast.ClassDef)
    methods = {n.name: n for n in symbol.node.body if isinstance(n, ast.FunctionDef)}
    if name in methods:
        return Symbol("function", symbol.module, methods[name]), []
    return None, [method for method in methods if not method.startswith("_")]


def _of_function(module: Module, node: ast.FunctionDef) -> dict[str, Parameter] | None:
    arguments = node.args
    if arguments.kwarg is not None:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (
        len(positional) - len(arguments.defaults)
    )
    defaults += arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[len(arguments.posonlyargs) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        argument.arg: _parameter(module, argument.annotation, default)
        for argument, default in pairs
        if argument.arg not in ("self", "cls")
    }


def _of_class(module: Module, node: ast.ClassDef) -> dict[str, Parameter] | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(module, item)
        if isinstance(item, ast.FunctionDef) and item.name == "__new__":
            return None
    fields: dict[str, Parameter] = {}
    is_dataclass = any(_last_name(d) == "dataclass" for d in node.decorator_list)
    for base in reversed(node.bases):
        name = _dotted(base)
        if name is None:
            return None
        if name in ("nn.Module", "linen.Module"):
            is_dataclass = True
            fields |= {n: Parameter(Any, COMPUTED, False) for n in _LINEN_FIELDS}
            continue
        symbol = resolve(module, name)
        if symbol is None or not isinstance(symbol.node, ast.ClassDef):
            return None
        inherited = parameters(symbol)
        if inherited is None:
            return None
        is_dataclass |= set(_LINEN_FIELDS) <= set(inherited)
        fields |= inherited
    if is_dataclass:
        fields |= _fields(module, node)
    return fields


def _fields(module: Module, node: ast.ClassDef) -> dict[str, Parameter]:
    fields = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(item.annotation):
            continue
        default: ast.expr | None = item.value
        if isinstance(default, ast.Call) and _last_name(default.func) == "field":
            keywords = {k.arg: k.value for k in default.keywords}
            init = keywords.get("init")
            if isinstance(init, ast.Constant) and init.value is False:
                continue
            default = keywords.get("default", keywords.get("default_factory"))
        fields[item.target.id] = _parameter(module, item.annotation, default)
    return fields


def _parameter(
    module: Module, annotation: ast.expr | None, default: ast.expr | None
) -> Parameter:
    value: object = COMPUTED
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            pass
    return Parameter(_kind(module, annotation), value, default is None)


def resolve(module: Module, name: str) -> Symbol | None:
    """The definition of a dotted name inside a module of ours."""
    first, *rest = name.split(".")
    symbol = module.lookup(first)
    for part in rest:
        if symbol is None or symbol.kind != "module":
            return None
        source = find(symbol.module)
        symbol = source.lookup(part) if source else None
    return symbol


# --------------------------------------------------------------------- annotations

_KNOWN: Mapping[str, Any] = {
    "Any": Any,
    "Callable": Callable,
    "DTypeLike": setting_types.DType,
    "Iterable": Iterable,
    "Literal": Literal,
    "Mapping": Mapping,
    "None": None,
    "PathLike": os.PathLike,
    "Sequence": Sequence,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
    "tuple": tuple,
}


def _kind(module: Module, node: ast.expr | None) -> Any:
    """An annotation as a typing object; `Any` if it is unknown."""
    if node is None:
        return Any
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _kind(module, ast.parse(node.value, mode="eval").body)
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[_kind(module, node.left), _kind(module, node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        return _subscript(module, node)
    name = _dotted(node)
    if name is None:
        return Any
    known = _KNOWN.get(name.rsplit(".", 1)[-1], COMPUTED)
    if known is not COMPUTED:
        return known
    symbol = resolve(module, name)
    if symbol is not None and symbol.kind == "class":
        return _object_of(symbol)
    if symbol is not None and isinstance(symbol.node, ast.Assign):
        defined_in = find(symbol.module)
        return _kind(defined_in, symbol.node.value) if defined_in else Any
    return Any


def _subscript(module: Module, node: ast.Subscript) -> Any:
    base = _kind(module, node.value)
    if base is Any or base is os.PathLike:
        return base
    elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if base is Literal:
        return Literal[tuple(ast.literal_eval(element) for element in elements)]
    if base is Callable:
        return Callable
    try:
        return base[tuple(_kind(module, element) for element in elements)]
    except TypeError:
        return Any


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def _last_name(node: ast.AST) -> str:
    name = _dotted(node.func if isinstance(node, ast.Call) else node)
    return (name or "").rsplit(".", 1)[-1]


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, including those in `if`, `try` and `with`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, ()))
