"""Binds a checked gin configuration, and builds its objects."""

from collections.abc import Callable, Sequence
import copy
import importlib
import pathlib
from typing import Any

import gin
from prottrans_jax.config import checking, reading

Config = reading.Config
Reference = reading.Reference
UsageError = reading.UsageError

_current: Config | None = None


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
    """Imports the modules of a checked configuration and binds it in gin.

    Replaces the previous configuration.

    Raises:
      UsageError: A module cannot be imported.
    """
    for module in config.imports.values():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"cannot import {module}: {error}.") from error
    global _current
    gin.clear_config()
    gin.parse_config(config.text)
    _current = config


def current() -> Config:
    """The configuration bound last."""
    if _current is None:
        raise RuntimeError("No gin configuration is bound: call `parse` first.")
    return _current


def resolved_config() -> str:
    """Text of the current configuration, as one self-contained gin file."""
    return current().text


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the parameters that the current configuration binds."""
    try:
        return gin.get_configurable(function)
    except ValueError:  # No parameter is bound: its own defaults hold.
        return function


def bound(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameters of `function` -> bound values, which `build` evaluates."""
    config, module = current(), function.__module__
    name = next(n for n, m in config.imports.items() if m == module)
    selector = f"{name}.{function.__name__}"
    return config.parameters(Reference("", selector, call=True))


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


def build(value: Any, **overrides: Any) -> Any:
    """Evaluates a value of the current configuration, e.g. calls `@t5.T5()`.

    Args:
      value: A value of `Config`: a literal, `Reference` or `Macro`; or "%NAME".
      **overrides: Parameters that replace the bound ones, for a called `Reference`.
    """
    config = current()
    if isinstance(value, str) and value.startswith("%"):
        value = reading.Macro(value[1:])
    value = config.value(value)
    if isinstance(value, Reference) and value.call and overrides:
        with gin.config_scope(value.scope or None):
            return configured(reading.resolve(config.imports, value.selector))(
                **overrides
            )
    # gin evaluates references in containers only when a bound value is copied.
    header = "\n".join(reading.import_line(m, n) for n, m in config.imports.items())
    gin.parse_config(
        f"from __gin__ import dynamic_registration\n{header}\n_VALUE = {value!r}\n"
    )
    return copy.deepcopy(gin.query_parameter("%_VALUE"))
