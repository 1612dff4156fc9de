"""Whether installed packages have the versions that an extra of this package needs.

pip lets one package replace what another needs, and Colab brings its own versions. The
failure then comes late, as a traceback from some other library. So mains compare the
versions before they import anything heavy.
"""

from collections.abc import Iterator
import contextlib
from importlib import metadata
import pathlib
import shlex
import sys
import traceback

_PACKAGE = "prottrans_jax"
# Devices need their own build of JAX: to be named again when JAX is replaced.
_DEVICE_EXTRAS = {"libtpu": "tpu", "jax-cuda13-plugin": "gpu"}


def check(extra: str) -> None:
    """Ends the process with a line that names what does not fit and how to repair it.

    Without metadata of this package, as from an unpacked archive, there is nothing to
    compare with.

    Args:
      extra: Extra of this package, such as "train".

    Raises:
      SystemExit: A package is missing, or its version is outside the bounds.
    """
    try:
        problems = list(_problems(extra))
    except metadata.PackageNotFoundError:
        return
    if problems:
        sys.exit(
            f"error: this needs the extra `{extra}`: {', '.join(problems)}. "
            f"{repair(extra)}"
        )


@contextlib.contextmanager
def explained_imports(extra: str) -> Iterator[None]:
    """Reports that installed libraries do not import together, within their bounds.

    protobuf, for one, raises an error of its own where generated code is newer than it.

    Args:
      extra: Extra of this package that needs the libraries.

    Raises:
      ImportError: In one line, for any error that another library raised.
    """
    try:
        yield
    except Exception as error:
        library = _library_that_raised(error)
        if library is None:
            raise
        version = _version(library)
        name = library if version is None else f"{library} {version}"
        what = " ".join(str(error).split()) or "no message"
        raise ImportError(
            f"{name} cannot be imported with the other packages installed here "
            f"({type(error).__name__}: {what}); constraints/ in the repository lists "
            f"versions that work together. {repair(extra)}"
        ) from error


def _library_that_raised(error: Exception) -> str | None:
    """Folder in site-packages of the code that raised; None: code of the user's."""
    file = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    for folder in ("site-packages", "dist-packages"):
        if folder in file.parts:
            library = file.parts[file.parts.index(folder) + 1].removesuffix(".py")
            return None if library == _PACKAGE else library
    return None


def repair(extra: str) -> str:
    """The command that installs an extra into this environment."""
    extras = [extra]
    extras += [name for package, name in _DEVICE_EXTRAS.items() if _version(package)]
    target = shlex.quote(f"{_PACKAGE}[{','.join(extras)}]")
    return (
        f"Repair: {shlex.quote(sys.executable)} -m pip install {target}, in a new "
        "environment where other programs need the present versions, as on Colab."
    )


def _problems(extra: str) -> Iterator[str]:
    """Each requirement that is not met: version present, versions needed."""
    theirs = metadata.requires(_PACKAGE) or []
    try:
        from packaging import requirements
    except ModuleNotFoundError:
        yield "packaging is not installed"
        return
    # JAX names the versions of jaxlib that it works with.
    lists = [theirs, metadata.requires("jax") or [] if _version("jax") else []]
    for line in dict.fromkeys(line for lines in lists for line in lines):
        needed = requirements.Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        present = _version(needed.name)
        # With the lower bound first.
        bounds = ",".join(sorted(map(str, needed.specifier), reverse=True))
        bounds = bounds and f" (needs {bounds})"
        if present is None:
            yield f"{needed.name} is not installed{bounds}"
        elif not needed.specifier.contains(present, prereleases=True):
            yield f"{needed.name} is {present}{bounds}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
