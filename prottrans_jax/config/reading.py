"""Reads gin files without running any code.

gin-config reports only the first mistake, applies a file's imports only inside that
file, and runs the code of all imports. So every file is first read as data, and the
whole configuration is checked: names, parameters, macros, required values and imports.
The result is one flat configuration; `building` binds it.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import difflib
import importlib
import pathlib
from typing import Any

from gin import config_parser
from prottrans_jax.config import former_names
from prottrans_jax.files import buckets, paths

PACKAGE = "prottrans_jax"
# Modules that gin files may not configure: with these a file could parse another file
# as trusted, or start a program.
NOT_CONFIGURABLE = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        *("config.building", "config.mains"),
        *("train", "evaluate", "precompile", "prepare", "convert", "export", "cli"),
    )
)


class UsageError(ValueError):
    """A user's mistake: reported without a traceback."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A value `@scope/module.name` (call=False) or `@scope/module.name()`."""

    scope: str
    selector: str
    call: bool

    def __repr__(self) -> str:
        return f"@{join(self.scope, self.selector)}{'()' if self.call else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """A value `%NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


REQUIRED = Macro("gin.REQUIRED")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole configuration, flat: all files and bindings together.

    Attributes:
      files: The files read, in the order in which they were read.
      imports: Name used in selectors -> module, e.g. {"t5": "prottrans_jax.models.t5"}.
      macros: Name -> value; values are literals, `Reference` or `Macro`.
      bindings: (scope, selector, parameter) -> value.
    """

    files: tuple[paths.Place, ...]
    imports: dict[str, str]
    macros: dict[str, Any]
    bindings: dict[tuple[str, str, str], Any]

    @property
    def text(self) -> str:
        """The configuration as one self-contained, sorted gin file."""
        lines = ["from __gin__ import dynamic_registration"]
        lines += [import_line(m, n) for n, m in sorted(self.imports.items())]
        lines += ["", *(f"{n} = {v!r}" for n, v in sorted(self.macros.items())), ""]
        lines += [
            f"{join(scope, selector)}.{parameter} = {value!r}"
            for (scope, selector, parameter), value in sorted(
                self.bindings.items(), key=lambda item: item[0]
            )
        ]
        return "\n".join(lines) + "\n"

    def value(self, value: object) -> Any:
        """Follows macros to a literal or a `Reference`.

        Raises:
          UsageError: The macros form a cycle.
        """
        macros: list[Macro] = []
        while isinstance(value, Macro) and value != REQUIRED:
            if value in macros:
                raise UsageError(f"Macros that name each other: {macros}.")
            macros.append(value)
            value = self.macros[value.name]
        return value

    def parameters(self, reference: Reference) -> dict[str, Any]:
        """Parameters bound for a reference; inner scopes override outer ones.

        Macros are replaced by their values; references in them are not called.
        """
        parameters: dict[str, Any] = {}
        scopes = reference.scope.split("/") if reference.scope else []
        for depth in range(len(scopes) + 1):
            scope = "/".join(scopes[:depth])
            for (s, selector, parameter), value in self.bindings.items():
                if (s, selector) == (scope, reference.selector):
                    parameters[parameter] = self.value(value)
        return parameters

    def depends_on(self, value: object, macro: str) -> bool:
        """Whether a value uses a macro, also through other macros and references."""
        if isinstance(value, Macro):
            if value == REQUIRED:
                return False
            return value.name == macro or self.depends_on(
                self.macros[value.name], macro
            )
        if isinstance(value, Reference):
            return any(
                self.depends_on(bound, macro)
                for (scope, selector, _), bound in self.bindings.items()
                if selector == value.selector
                and f"{value.scope}/".startswith(f"{scope}/" if scope else "")
            )
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple)):
            return any(self.depends_on(item, macro) for item in value)
        return False


# ------------------------------------------------------------------ finding files


def package_folder() -> pathlib.Path:
    """The folder of the package's own gin files, in a wheel or a checkout.

    Not through importlib.resources, which may not find `prottrans_jax.gin` in an
    editable install.
    """
    here = pathlib.Path(__file__).resolve().parents[1]
    for folder in (here / "gin", here.parent / "gin"):
        if (folder / "runs").is_dir():
            return folder
    raise RuntimeError(
        f"The gin files of {PACKAGE} are neither in {here / 'gin'} nor in "
        f"{here.parent / 'gin'}: the installation is incomplete. Install it again."
    )


def leaves() -> list[str]:
    """Names of the package's leaves, sorted."""
    return sorted(path.name for path in package_folder().glob("*.gin"))


def find_file(
    name: str | pathlib.Path,
    folders: Sequence[str | pathlib.Path] = (),
    included_by: paths.Place | None = None,
) -> paths.Place:
    """Finds a gin file by path or URL, then in `folders`, then in the package.

    An included file is first searched in the folder of the including file, and by path
    last, so that the working directory does not change the meaning of a leaf.

    Raises:
      UsageError: Lists similar files, the searched folders and all leaves.
    """
    working_directory = [pathlib.Path()]
    try:
        if buckets.is_bucket(name):
            return _in_bucket(paths.place(name, "gin file"))
        name = paths.local(name, "gin file")
        search_paths = [paths.local(folder, "--gin_search_paths") for folder in folders]
    except paths.PathError as error:
        raise UsageError(str(error)) from error
    searched: list[paths.Place] = [*search_paths, package_folder()]
    if included_by:
        searched = [included_by.parent, *searched, *working_directory]
    else:
        searched = [*working_directory, *searched]
    for folder in searched:
        for candidate in (folder / name, folder / f"{name}.gin"):
            if candidate.is_file():
                return candidate if buckets.is_bucket(folder) else candidate.resolve()
    replacement = former_names.LEAVES.get(str(name).removesuffix(".gin"))
    if replacement is not None:
        raise UsageError(f"There is no {name} any more: use {replacement}.")
    known_files = [
        p.relative_to(folder).as_posix()
        for folder in searched
        if folder not in working_directory
        and not buckets.is_bucket(folder)
        and folder.is_dir()
        for p in folder.rglob("*.gin")
    ]
    raise UsageError(
        f"No gin file {str(name)!r}.{nearest(str(name), known_files)}\n"
        f"  Searched: {', '.join(map(paths.absolute, searched))}\n"
        f"  Leaves: {', '.join(leaves())}"
    )


def _in_bucket(place: paths.Place) -> paths.Place:
    try:
        if place.is_file():
            return place
    except OSError as error:
        raise UsageError(paths.explain(error)) from error
    raise UsageError(f"No gin file {place}.")


# --------------------------------------------------------------- reading, not running


@dataclasses.dataclass(frozen=True)
class Statement:
    """One binding as written, with its place."""

    scope: str
    selector: str
    parameter: str  # Empty for a macro.
    value: object
    where: str
    source: "Source"


@dataclasses.dataclass
class Source:
    """One file, or the command line: its imports, and whether it may run code."""

    name: str
    trusted: bool
    imports: dict[str, str] = dataclasses.field(default_factory=dict)


class _Inert(config_parser.ParserDelegate):
    """Returns references and macros as records, where gin would resolve them."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


class Reader:
    """Collects statements of files and bindings; later ones take precedence."""

    def __init__(self, search_paths: Sequence[str | pathlib.Path], trust_config: bool):
        self.search_paths = list(search_paths)
        self.trust_config = trust_config
        self.files: list[paths.Place] = []
        self.sources: list[Source] = []
        self.statements: list[Statement] = []
        self._open: list[paths.Place] = []

    def read_file(
        self, name: str | pathlib.Path, included_by: paths.Place | None = None
    ) -> None:
        """Reads a file and the files that it includes."""
        path = find_file(name, self.search_paths, included_by)
        if path in self._open:
            raise UsageError(
                f"{path} includes itself: {' > '.join(map(str, self._open))}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error
        trusted = self.trust_config or path.is_relative_to(package_folder())
        self._open.append(path)
        self.read_text(text, Source(str(path), trusted), path)
        self._open.pop()
        self.files.append(path)

    def read_text(
        self, text: str, source: Source, path: paths.Place | None = None
    ) -> None:
        """Reads gin statements, of the file `path` or of the command line."""
        self.sources.append(source)
        for statement in _statements(text, source.name):
            where = f"{source.name}:{statement.location.line_num}"
            if isinstance(statement, config_parser.ImportStatement):
                self._read_import(statement, source, where)
            elif isinstance(statement, config_parser.IncludeStatement):
                try:
                    self.read_file(statement.filename, path)
                except UsageError as error:
                    raise UsageError(f"{where}: {error}") from error
            elif isinstance(statement, config_parser.BindingStatement):
                scope, selector, parameter, value, _ = statement
                if not parameter:
                    scope, selector = "", join(scope, selector)
                self.statements.append(
                    Statement(scope, selector, parameter, value, where, source)
                )

    def _read_import(
        self, statement: config_parser.ImportStatement, source: Source, where: str
    ) -> None:
        module = former_names.MODULES.get(statement.module, statement.module)
        if module == "__gin__.dynamic_registration":
            return
        if module in NOT_CONFIGURABLE:
            raise UsageError(f"{where}: gin files cannot use {module}.")
        ours = module == PACKAGE or module.startswith(PACKAGE + ".")
        if not (ours or source.trusted):
            raise UsageError(
                f"{where}: imports {module}, and importing runs code. Gin files that "
                f"do not come with {PACKAGE} may import only its modules. If you trust "
                "this file, pass --trust_config."
            )
        name = statement.bound_name()
        source.imports[name] = module if statement.is_from or statement.alias else name


def _statements(text: str, name: str) -> Iterator[Any]:
    try:
        yield from config_parser.ConfigParser(text, _Inert())
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        text = (error.text or "").strip() or error.msg
        raise UsageError(
            f"{name}{line}: not gin syntax: {text!r}. "
            "A string needs its own quotes inside those of the shell: "
            "--gin_bindings='MODEL_DIR = \"/tmp/run\"'."
        ) from error
    except Exception as error:  # The tokenizer's own errors have no common class.
        raise UsageError(f"{name}: not gin syntax: {error}") from error


# -------------------------------------------------------------------------- helpers


def resolve(imports: dict[str, str], selector: str) -> Any:
    """The function or class of a selector of a `Config`; imports its module."""
    root, *rest = selector.split(".")
    value: Any = importlib.import_module(imports[root])
    for part in rest:
        value = getattr(value, part)
    return value


def walk(value: object, kind: type) -> Iterator[Any]:
    """All instances of `kind` in a value, containers included."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from walk(item, kind)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from walk(item, kind)


def join(scope: str, selector: str) -> str:
    """`scope/selector`, without the slash if there is no scope."""
    return f"{scope}/{selector}" if scope else selector


def import_line(module: str, name: str) -> str:
    """The statement that imports `module` under `name`."""
    parent, _, last = module.rpartition(".")
    if not parent:
        return f"import {module}" + (f" as {name}" if name != module else "")
    return f"from {parent} import {last}" + (f" as {name}" if name != last else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """' Nearest: a, b.' with similar names of `known`, or ''; ignores case."""
    lower: dict[str, str] = {}
    for candidate in sorted(known):
        lower.setdefault(candidate.lower(), candidate)
    similar = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    # A short name may be the last part of a long one.
    similar += [k for k in lower if k.endswith("." + name.lower()) and k not in similar]
    return f" Nearest: {', '.join(lower[s] for s in similar[:3])}." if similar else ""
