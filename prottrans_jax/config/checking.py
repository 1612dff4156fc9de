"""Checks a whole gin configuration and reports all mistakes with their places."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
from typing import Any

import gin
from prottrans_jax.config import (
    binding_values,
    former_names,
    reading,
    signatures,
    t5x_names,
    targets,
)


def check(
    files: Sequence[str | pathlib.Path],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str | pathlib.Path] = (),
    trust_config: bool = False,
    unneeded: Sequence[str] = (),
) -> reading.Config:
    """Reads gin files and bindings, and checks them together; later ones win.

    Modules of the package are read as source, not imported. So a mistake is reported at
    once, not after TensorFlow is loaded.

    Args:
      files: Leaf names or paths, searched as paths, in `search_paths`, then in the
        package.
      bindings: Gin statements, after the files. They may use every module that a file
        imports, and a short form of a name (`train.total_steps`) if it is unambiguous.
      search_paths: More folders to search, for `include` too.
      trust_config: Lets files from outside the package import any module, which can run
        any code.
      unneeded: Macros that may stay without a value though a file requires them.

    Raises:
      UsageError: Lists all unknown names or missing values with their places.
    """
    reader = reading.Reader(search_paths, trust_config)
    for file in files:
        reader.read_file(file)
    for binding in bindings:
        reader.read_text(
            binding,
            reading.Source(f"--gin_bindings={binding}", trusted=trust_config),
        )
    resolver = _Resolver(reader)
    macros: dict[str, Any] = {}
    bound: dict[tuple[str, str, str], Any] = {}
    where: dict[Any, str] = {}
    used: dict[str, str] = {}
    for statement in reader.statements:
        known_errors = len(resolver.errors)
        value = resolver.value(statement)
        for macro in reading.walk(value, reading.Macro):
            if macro != reading.REQUIRED:
                used.setdefault(macro.name, statement.where)
        if statement.parameter:
            key = resolver.binding(statement)
            if key:
                bound[key], where[key] = value, statement.where
            advice = t5x_names.binding(statement.selector, statement.parameter)
            if advice and len(resolver.errors) > known_errors:
                resolver.errors[known_errors:] = [f"{statement.where}: {advice}"]
        else:
            macros[statement.selector] = value
            where[statement.selector] = statement.where
    for name in unneeded:
        if macros.get(name) == reading.REQUIRED:
            macros[name] = "unused"
    config = reading.Config(tuple(reader.files), resolver.imports, macros, bound)
    errors = resolver.errors + _macro_errors(config, where, used)
    if not errors:
        resolver.bind_holders(config, where)
    errors = errors or binding_values.Check(config, where, resolver.targets).errors()
    # A misspelt name makes its value missing too: report misspelt names first.
    errors = errors or _missing(config, where, resolver.targets)
    if errors:
        raise reading.UsageError("\n".join(dict.fromkeys(errors)))
    return config


class _Resolver:
    """Maps the names written in all files to one set of imports and selectors."""

    def __init__(self, reader: reading.Reader):
        self.imports: dict[str, str] = {}
        self.errors: list[str] = []
        # Final selector -> its function or class.
        self.targets: dict[str, targets.Target] = {}
        # Statements with a parameter that has moved, their final selector, and where
        # the parameter has moved to.
        self._moved: list[tuple[reading.Statement, str, former_names.Moved]] = []
        self._everywhere: dict[str, set[str]] = {}
        for source in reader.sources:
            for name, module in source.imports.items():
                self._everywhere.setdefault(name, set()).add(module)
                # Also without a name that uses it: importing tasks registers them.
                if self._exists(source.name, module):
                    self._name(module)
        # Full names in use, for short forms on the command line.
        self._in_use: dict[str, set[str]] = {}
        for statement in reader.statements:
            selectors = {
                r.selector for r in reading.walk(statement.value, reading.Reference)
            }
            if statement.parameter:
                selectors.add(statement.selector)
            for selector in selectors:
                if self._modules(statement.source, selector.split(".")[0]):
                    short = selector.rsplit(".", 1)[-1]
                    self._in_use.setdefault(short, set()).add(selector)

    def _modules(self, source: reading.Source, name: str) -> set[str]:
        if name in source.imports:
            return {source.imports[name]}
        return self._everywhere.get(name, set())

    def value(self, statement: reading.Statement) -> Any:
        """The statement's value with the final names of all references."""

        def replace(value: object) -> Any:
            if isinstance(value, reading.Reference):
                selector, target = self._target(statement, value.selector)
                if target is None:
                    return value
                return dataclasses.replace(value, selector=selector)
            if isinstance(value, dict):
                return {replace(k): replace(v) for k, v in value.items()}
            if isinstance(value, list | tuple | set):
                return type(value)(replace(v) for v in value)
            return value

        return replace(statement.value)

    def binding(self, statement: reading.Statement) -> tuple[str, str, str] | None:
        """Final (scope, selector, parameter) of a statement; None after an error."""
        selector, target = self._target(statement, statement.selector)
        if target is None:
            return None
        parameter = statement.parameter
        moved = former_names.PARAMETERS.get(f"{self._full_name(selector)}.{parameter}")
        if moved is not None:
            self._moved.append((statement, selector, moved))
            named = self._parameter(statement, moved.parameter)
            return named and (statement.scope, *named)
        parameters = target.parameters
        if parameters is not None and parameter not in parameters:
            self.errors.append(
                f"{statement.where}: {selector} has no parameter {parameter!r}."
                f"{reading.nearest(parameter, parameters)}"
            )
            return None
        return statement.scope, selector, parameter

    def bind_holders(self, config: reading.Config, where: dict[Any, str]) -> None:
        """Binds the objects that moved parameters belong to, where nothing is bound.

        An object takes the scope of the one that had the parameter before: if files say
        `a.Net.config = @big/a.Config()`, and a parameter of `a.Config` has moved to
        `b.Compute`, held by `a.Net.compute`, then `a.Net.compute = @big/b.Compute()`.

        Args:
          config: The configuration; bindings are added to it.
          where: Key of a binding -> its place in a file; places are added to it.
        """
        for statement, former, moved in self._moved:
            holder = self._parameter(statement, moved.holder)
            named = self._parameter(statement, moved.parameter)
            if holder is None or named is None:
                continue
            selector, parameter = holder
            scopes = {
                scope: reference.scope
                for (scope, bound, _), value in config.bindings.items()
                for reference in reading.walk(config.value(value), reading.Reference)
                if (bound, reference.selector) == (selector, former)
                and f"{reference.scope}/".startswith(
                    f"{statement.scope}/" if statement.scope else ""
                )
            }
            for scope, inner in (scopes or {statement.scope: statement.scope}).items():
                key = (scope, selector, parameter)
                if key not in config.bindings:
                    reference = reading.Reference(inner, named[0], call=True)
                    config.bindings[key], where[key] = reference, statement.where

    def _parameter(
        self, statement: reading.Statement, full_name: str
    ) -> tuple[str, str] | None:
        """Selector and parameter of a full name; None after an error."""
        configurable, _, parameter = full_name.rpartition(".")
        module, _, name = configurable.rpartition(".")
        selector, target = self._import(statement, module, [name])
        return None if target is None else (selector, parameter)

    def _full_name(self, selector: str) -> str:
        root, *rest = selector.split(".")
        return ".".join([self.imports.get(root, root), *rest])

    def _target(
        self, statement: reading.Statement, selector: str
    ) -> tuple[str, targets.Target | None]:
        """Final name and target of a name as written; (_, None) after an error."""
        if selector in ("gin.macro", "gin.singleton"):
            value = getattr(gin.config, selector.removeprefix("gin."))
            return selector, targets.Target(value=value)
        root, *rest = selector.split(".")
        modules = self._modules(statement.source, root)
        if not modules:
            matches = {
                full
                for full in self._in_use.get(selector.rsplit(".", 1)[-1], ())
                if full.endswith("." + selector)
            }
            if len(matches) == 1:
                return self._target(statement, matches.pop())
            former = [
                full
                for full in former_names.CONFIGURABLES
                if full.endswith("." + selector)
            ]
            if len(former) == 1:
                module, _, name = former[0].rpartition(".")
                return self._import(statement, module, [name])
            names = sorted({n for full in self._in_use.values() for n in full})
            either = f" It may be {' or '.join(sorted(matches))}." if matches else ""
            self.errors.append(
                f"{statement.where}: no file imports {root!r}, of {selector!r}."
                f"{either or reading.nearest(selector, [*self._everywhere, *names])}"
            )
            return selector, None
        if len(modules) > 1:
            self.errors.append(
                f"{statement.where}: {root!r} is {' and '.join(sorted(modules))} in "
                "different files. Import the one you mean in this file."
            )
            return selector, None
        return self._import(statement, next(iter(modules)), rest)

    def _import(
        self, statement: reading.Statement, module: str, rest: list[str]
    ) -> tuple[str, targets.Target | None]:
        if not rest:
            self.errors.append(
                f"{statement.where}: {module} is a module. Name a function or class."
            )
            return module, None
        if not self._exists(statement.where, module):
            return module, None
        # After `import a`, the first parts of `a.b.c` may be modules too.
        while len(rest) > 1 and signatures.locate(f"{module}.{rest[0]}") is not None:
            module, rest = f"{module}.{rest[0]}", rest[1:]
            if not self._exists(statement.where, module):
                return module, None
        renamed = former_names.CONFIGURABLES.get(".".join([module, *rest]))
        if renamed is not None:
            module, _, name = renamed.rpartition(".")
            rest = [name]
        try:
            if signatures.locate(module) is not None:
                target = targets.own(statement, module, rest)
            else:
                target = targets.foreign(statement, module, rest)
        except reading.UsageError as error:
            self.errors.append(str(error))
            return module, None
        selector = ".".join([self._name(module), *rest])
        self.targets[selector] = target
        return selector, target

    def _exists(self, where: str, module: str) -> bool:
        """Whether a module exists; adds an error if not. Imports nothing."""
        if module in reading.NOT_CONFIGURABLE:
            self.errors.append(f"{where}: gin files cannot use {module}.")
            return False
        root = module.partition(".")[0]
        if root == reading.PACKAGE:
            exists = signatures.locate(module) is not None
        else:
            exists = importlib.util.find_spec(root) is not None
        if not exists:
            self.errors.append(
                f"{where}: cannot import {module}: there is no such module."
                f"{reading.nearest(module, _package_modules())}"
            )
        return exists

    def _name(self, module: str) -> str:
        """The name under which the configuration imports `module`."""
        name = module.rsplit(".", 1)[-1]
        if self.imports.setdefault(name, module) != module:
            name = module.replace(".", "_")
            self.imports[name] = module
        return name


def _macro_errors(
    config: reading.Config, where: dict[Any, str], used: dict[str, str]
) -> list[str]:
    """Errors of macros that are used but not set, or set but not used."""
    errors = [
        f"{used[name]}: uses %{name}, which nothing sets."
        f"{reading.nearest(name, config.macros)}"
        for name in sorted(set(used) - set(config.macros))
    ]
    errors += [
        f"{where[name]}: sets {name}, which nothing uses."
        f"{t5x_names.macro(name) or reading.nearest(name, used)}"
        for name in sorted(set(config.macros) - set(used))
    ]
    return errors


def _missing(
    config: reading.Config,
    where: dict[Any, str],
    known_targets: dict[str, targets.Target],
) -> list[str]:
    """Lines for required values without a value, and for parameters of calls."""
    names = [
        f"  {name} = ...    ({where[name]})"
        for name, value in sorted(config.macros.items())
        if value == reading.REQUIRED
    ]
    names += [
        f"  {reading.join(scope, selector)}.{parameter} = ...    "
        f"({where[scope, selector, parameter]})"
        for (scope, selector, parameter), value in sorted(
            config.bindings.items(), key=lambda item: item[0]
        )
        if value == reading.REQUIRED
    ]
    called: dict[reading.Reference, str] = {}
    for key, value in [*config.bindings.items(), *config.macros.items()]:
        for reference in reading.walk(value, reading.Reference):
            if reference.call and not reference.selector.startswith("gin."):
                called.setdefault(reference, where[key])
    for reference, place in called.items():
        bound = config.parameters(reference)
        parameters = known_targets[reference.selector].parameters or {}
        for parameter, spec in parameters.items():
            if spec.required and parameter not in bound:
                name = reading.join(reference.scope, reference.selector)
                names.append(f"  {name}.{parameter} = ...    ({place} calls it)")
    if not names:
        return []
    return [
        "These values are required; give each with --gin_bindings or in a file:",
        *dict.fromkeys(names),
    ]


def _package_modules() -> list[str]:
    here = pathlib.Path(__file__).resolve().parents[1]
    return [
        ".".join([reading.PACKAGE, *path.relative_to(here).with_suffix("").parts])
        for path in here.rglob("*.py")
    ]
