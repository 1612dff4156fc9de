"""Builds the objects of a checked gin configuration.

Gin files are parsed once, in `reading`; objects are built from what it read, as gin
does: a reference is called in its scope, which references without a scope of their own
in its parameters inherit.
"""

from collections.abc import Callable, Sequence
import copy
import dataclasses
import functools
import importlib
import pathlib
from typing import Any

from prottrans_jax.config import checking, reading, requirements

Config = reading.Config
Reference = reading.Reference
UsageError = reading.UsageError


@dataclasses.dataclass
class _Builder:
    """Builds values of a configuration; each `gin.singleton` once."""

    config: Config
    singletons: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, value: object, scope: str = "", **overrides: Any) -> Any:
        """Evaluates a value in a scope; `overrides` are for a called reference."""
        value = self.config.value(value)
        if isinstance(value, Reference):
            scope = value.scope or scope
            if value.selector.startswith("gin."):
                return self._gins_own(value.selector, scope)
            function = reading.resolve(self.config.imports, value.selector)
            bound = self.configured(function, value.selector, scope)
            return bound(**overrides) if value.call else bound
        if isinstance(value, dict):
            return {
                self.build(key, scope): self.build(item, scope)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple | set):
            return type(value)(self.build(item, scope) for item in value)
        return copy.deepcopy(value)

    def configured(
        self, function: Callable[..., Any], selector: str, scope: str
    ) -> Callable[..., Any]:
        """`function` with the parameters bound for a selector, built at each call."""
        parameters = self.config.parameters(Reference(scope, selector, call=True))
        if not parameters:
            return function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            built = {
                name: self.build(value, scope)
                for name, value in parameters.items()
                if name not in kwargs
            }
            return function(*args, **built, **kwargs)

        return call

    def _gins_own(self, selector: str, scope: str) -> Any:
        """The value of `NAME/gin.macro` or `NAME/gin.singleton`."""
        parameters = self.config.parameters(Reference(scope, selector, call=True))
        if selector == "gin.macro":
            return self.build(parameters["value"], scope)
        if scope not in self.singletons:
            self.singletons[scope] = self.build(parameters["constructor"])()
        return self.singletons[scope]


_current: _Builder | None = None


def parse(
    files: Sequence[str | pathlib.Path],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str | pathlib.Path] = (),
    trust_config: bool = False,
) -> Config:
    """Reads, checks and binds gin files and bindings; replaces the previous ones.

    Args:
      files: Leaf names or paths, searched as paths, in `search_paths`, then in the
        package.
      bindings: Gin statements, later ones win. They may use every module that a file
        imports, and a short form of a name (`train.total_steps`) if it is unambiguous.
      search_paths: More folders to search, for `include` too.
      trust_config: Lets files from outside the package import any module, which can run
        any code.

    Returns:
      The configuration, which `configured` and `build` use from now on.

    Raises:
      UsageError: Lists all unknown names or missing values with their places.
    """
    config = checking.check(files, bindings, search_paths, trust_config)
    bind(config)
    return config


def bind(config: Config) -> None:
    """Imports the modules of a checked configuration, which `build` uses from now on.

    Replaces the previous configuration.

    Raises:
      UsageError: A module cannot be imported.
    """
    for module in config.imports.values():
        try:
            with requirements.explained_imports("train"):
                importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"cannot import {module}: {error}.") from error
    global _current
    _current = _Builder(config)


def current() -> Config:
    """The configuration bound last."""
    return _builder().config


def _builder() -> _Builder:
    if _current is None:
        raise RuntimeError("No gin configuration is bound: call `parse` first.")
    return _current


def resolved_config() -> str:
    """Text of the current configuration, as one self-contained gin file."""
    return current().text


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the parameters that the current configuration binds."""
    selector = _selector(function)
    return (
        function if selector is None else _builder().configured(function, selector, "")
    )


def bound(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameters of `function` -> bound values, which `build` evaluates."""
    selector = _selector(function)
    return (
        {}
        if selector is None
        else current().parameters(Reference("", selector, call=True))
    )


def _selector(function: Callable[..., Any]) -> str | None:
    """The name of a function in the current configuration; None: it is not used."""
    for name, module in current().imports.items():
        if module == function.__module__:
            return f"{name}.{function.__qualname__}"
    return None


def total_steps_shape_the_run() -> bool:
    """Whether the optimizer's schedule, or the objective, depends on TRAIN_STEPS.

    Such a run cannot resume with another number of steps as the same run.
    """
    config = current()
    return any(
        config.depends_on(value, "TRAIN_STEPS")
        for (_, selector, parameter), value in config.bindings.items()
        if selector == "trainer.train" and parameter in ("objective", "optimizer")
    )


def build(value: object, **overrides: Any) -> Any:
    """Evaluates a value of the current configuration, e.g. calls `@t5.T5()`.

    Args:
      value: A value of `Config`: a literal, `Reference` or `Macro`; or "%NAME".
      **overrides: Parameters that replace the bound ones, for a called `Reference`.
    """
    if isinstance(value, str) and value.startswith("%"):
        value = reading.Macro(value[1:])
    return _builder().build(value, **overrides)
