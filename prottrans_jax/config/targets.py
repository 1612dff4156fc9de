"""Functions and classes of selectors: ours from source, others imported."""

from collections.abc import Callable
import functools
import importlib
import inspect
import typing
from typing import Any

from prottrans_jax.config import reading, setting_types, signatures


class Target:
    """The function or class of a selector, with its parameters."""

    def __init__(
        self,
        symbol: signatures.Symbol | None = None,
        value: Callable[..., Any] | None = None,
    ):
        # None for functions and classes of other libraries.
        self.symbol = symbol
        self._value = value

    @functools.cached_property
    def parameters(self) -> dict[str, signatures.Parameter] | None:
        """Parameters that gin may bind; None if any keyword is accepted."""
        if self.symbol is not None:
            return signatures.parameters(self.symbol)
        assert self._value is not None
        signature = inspect.signature(self._value).parameters
        kinds = {parameter.kind for parameter in signature.values()}
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return None
        bindable = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        return {
            name: _parameter(self._value, parameter)
            for name, parameter in signature.items()
            if parameter.kind in bindable and name != "self"
        }


def _parameter(
    function: Callable[..., Any], parameter: inspect.Parameter
) -> signatures.Parameter:
    try:
        kind = typing.get_type_hints(function).get(parameter.name, Any)
    except (NameError, TypeError):  # Annotations with names local to their file.
        kind = Any
    required = parameter.default is inspect.Parameter.empty
    default = setting_types.UNKNOWN if required else parameter.default
    return signatures.Parameter(kind, default, required)


def own(statement: reading.Statement, module: str, rest: list[str]) -> Target:
    """The target in a module of ours, from its source.

    Raises:
      UsageError: There is no such name, or gin files must not use it.
    """
    where, name = statement.where, ".".join(rest)
    source = signatures.find(module)
    assert source is not None
    symbol: signatures.Symbol | None = signatures.Symbol("module", module)
    for index, part in enumerate(rest):
        assert symbol is not None
        known: list[str] = []
        parent = symbol
        if symbol.kind == "module":
            source = signatures.find(symbol.module)
            known = source.public() if source is not None else []
            symbol = source.lookup(part) if source is not None else None
        elif symbol.kind == "class":
            symbol, known = signatures.member(symbol, part)
        else:
            symbol = None
        if symbol is None and not _is_ours(parent.module):
            raise _untrusted(statement, f"{module}.{name}")
        if symbol is None:
            raise reading.UsageError(
                f"{where}: {module} has no {name!r}.{reading.nearest(part, known)}"
            )
        last = index == len(rest) - 1
        if symbol.kind == "value" or (last and symbol.kind == "module"):
            if not _is_ours(symbol.module):
                raise _untrusted(statement, f"{module}.{name}")
            raise reading.UsageError(
                f"{where}: {module}.{name} is not a function or class."
            )
    assert symbol is not None
    if not _is_ours(symbol.module):
        raise _untrusted(statement, f"{module}.{name}")
    return Target(symbol)


def foreign(statement: reading.Statement, module: str, rest: list[str]) -> Target:
    """The target in a trusted module of another library; imports the module.

    Raises:
      UsageError: The import fails, or there is no such function or class.
    """
    where, name = statement.where, ".".join(rest)
    try:
        value: Any = importlib.import_module(module)
        for part in rest:
            value = getattr(value, part)
    except ImportError as error:
        raise reading.UsageError(
            f"{where}: cannot import {module}: {error}."
        ) from error
    except AttributeError as error:
        raise reading.UsageError(
            f"{where}: {module} has no {name!r}."
            f"{reading.nearest(name, [n for n in dir(value) if n[0] != '_'])}"
        ) from error
    if not callable(value):
        raise reading.UsageError(
            f"{where}: {module}.{name} is not a function or class."
        )
    return Target(value=value)


def _untrusted(statement: reading.Statement, name: str) -> reading.UsageError:
    if statement.source.trusted:
        return reading.UsageError(
            f"{statement.where}: {name} does not come with {reading.PACKAGE}. "
            "Import the module that defines it."
        )
    return reading.UsageError(
        f"{statement.where}: {name} does not come with {reading.PACKAGE}, and "
        f"calling it could run anything. If you trust {statement.source.name}, pass "
        "--trust_config."
    )


def _is_ours(module: str) -> bool:
    return (
        module.startswith(reading.PACKAGE + ".")
        and module not in reading.NOT_CONFIGURABLE
    )
