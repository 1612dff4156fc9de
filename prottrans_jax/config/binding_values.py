"""Checks values of bindings against their parameters: types and task names."""

from typing import Any

from prottrans_jax.config import reading, references, setting_types, signatures, targets
from prottrans_jax.data.seqio import task_names

_LOADER = "prottrans_jax.data.rows.loader"


class Check:
    """Checks values against the types of their parameters, and converts them.

    A macro is converted to the type of the parameters that use it: `TRAIN_STEPS = 1e6`
    becomes a whole number for all of them.

    Args:
      config: The configuration; converted values are stored in it.
      where: Key of a binding, or name of a macro -> its place in a file.
      known_targets: Selector -> its function or class.
    """

    def __init__(
        self,
        config: reading.Config,
        where: dict[Any, str],
        known_targets: dict[str, targets.Target],
    ):
        self._config = config
        self._where = where
        self._targets = known_targets

    def errors(self) -> list[str]:
        """One line for each setting of a wrong type."""
        lines = []
        for key, value in self._config.bindings.items():
            scope, selector, name = key
            target = self._targets.get(selector)
            parameter = (target.parameters or {}).get(name) if target else None
            if parameter is None:
                continue
            literal = self._literal(value)  # Refuses macros in a cycle.
            setting, owner = self._owner(key, value)
            if why := self._task_problem(selector, name, literal):
                lines.append(f"{self._where[owner]}: {setting}: {why}")
                continue
            use = f"{reading.join(scope, selector)}.{name}"
            via = f" (for {use})" if setting != use else ""
            if why := references.problem(
                self._followed(value), parameter.kind, self._targets
            ):
                lines.append(
                    f"{self._where[owner]}: {setting} = {why}; expected "
                    f"{self._expected(parameter)}{via}."
                )
                continue
            try:
                typed = setting_types.coerce(literal, parameter.kind, parameter.default)
            except ValueError as error:
                examples = references.examples(parameter.kind, self._config.imports)
                lines.append(
                    f"{self._where[owner]}: {setting} = {error}{examples}{via}."
                )
                continue
            if typed is not literal and not _holds_unknown(literal):
                settings: dict[Any, Any] = (
                    self._config.bindings if owner == key else self._config.macros
                )
                settings[owner] = typed
        return lines

    def _task_problem(self, selector: str, parameter: str, value: object) -> str:
        """Why the configuration cannot have registered a task; "" if it can."""
        imports = self._config.imports
        if parameter != "task" or imports[selector.split(".")[0]] != _LOADER:
            return ""
        if value is setting_types.UNKNOWN:
            return ""
        if not isinstance(value, str):
            return f"{value!r}: expected the name of a task, in quotes."
        ours = all(m.startswith(f"{reading.PACKAGE}.") for m in imports.values())
        return (
            task_names.unknown(value) if ours and value not in task_names.NAMES else ""
        )

    def _owner(self, key: tuple[str, str, str], value: object) -> tuple[str, Any]:
        """The binding or macro that holds the value: its name and key in `where`."""
        scope, selector, name = key
        setting = f"{reading.join(scope, selector)}.{name}"
        owner: str | tuple[str, str, str] = key
        while isinstance(value, reading.Macro) and value != reading.REQUIRED:
            setting = owner = value.name
            value = self._config.macros[value.name]
        return setting, owner

    def _expected(self, parameter: signatures.Parameter) -> str:
        """Description of a parameter's values, with examples of suitable classes."""
        words = setting_types.describe(parameter.kind, parameter.default)
        return words + references.examples(parameter.kind, self._config.imports)

    def _followed(self, value: object) -> Any:
        """The value with macros replaced by their values; references stay."""
        value = self._config.value(value)
        if isinstance(value, dict):
            return {key: self._followed(item) for key, item in value.items()}
        return value

    def _literal(self, value: object) -> Any:
        """The value with macros replaced by their values, references by `UNKNOWN`."""
        value = self._config.value(value)
        if isinstance(value, reading.Reference | reading.Macro):
            return setting_types.UNKNOWN
        if isinstance(value, dict):
            return {self._literal(k): self._literal(v) for k, v in value.items()}
        if isinstance(value, list | tuple | set):
            return type(value)(self._literal(v) for v in value)
        return value


def _holds_unknown(value: object) -> bool:
    return any(x is setting_types.UNKNOWN for x in reading.walk(value, object))
