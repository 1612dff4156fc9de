"""Every path that a user gives, on a command line or in Python, comes through here.

`~` is the home folder, as in a shell: bash leaves the `~` of `--model_dir=~/run` as it
is. URLs are refused: pathlib would make `gs:/bucket` of `gs://bucket`, a local folder.
"""

from collections.abc import Sequence
import os
import pathlib
import re

# Prefixes of parameter sources; see `prottrans_jax.checkpoints.opening`.
SOURCE_KINDS = ("hf", "t5x", "mtf")
STANDARD_INPUT = "-"
# One slash is what pathlib leaves of two.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/")
_WEB = ("http", "https", "ftp", "ftps")


def explain(error: OSError) -> str:
    """`FILE: reason` of an error of the system; an error of ours has its own text."""
    if error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


class PathError(ValueError):
    """A path that cannot be meant: a URL, an unknown user's home, nothing at all."""


def local(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """A path of this machine, with `~` expanded. Calling it twice changes nothing.

    Args:
      path: As the user gave it.
      flag: Where it was given, such as "--output", for errors.

    Raises:
      PathError: It is empty, a URL such as gs://bucket, or in an unknown user's home.
    """
    text = expanded(path, flag)
    plain = pathlib.Path(text)
    # `./~` and `./gs:/x`, which pathlib shortens, are the names of real files.
    if str(plain).startswith("~") or _URL.match(str(plain)):
        return pathlib.Path.cwd() / plain
    return plain


def expanded(path: str | os.PathLike, flag: str) -> str:
    """As `local`, as text: `./name` stays `./name`. Raises as `local` does."""
    text = _text(path, flag)
    if not text:
        raise PathError(f"{flag} is empty: give a path.")
    if "\0" in text:
        raise PathError(f"{flag}={text!r}: a path cannot hold a NUL character.")
    if url := _URL.match(text):
        raise PathError(f"{flag}={text}: {_way_out(url[1].lower())}")
    full = os.path.expanduser(text)
    if full.startswith("~"):
        raise PathError(
            f"{flag}={text}: the home folder of {text.split('/')[0]} is not known. "
            f"Give the whole path, or ./{text} for a file of that name."
        )
    return full


def of_environment(variable: str) -> pathlib.Path | None:
    """The folder that an environment variable names; None: not set, or empty.

    Raises:
      PathError: As `local`.
    """
    value = os.environ.get(variable)
    return local(value, variable) if value else None


def cache_home() -> pathlib.Path:
    """Folder of all programs' caches: $XDG_CACHE_HOME, or ~/.cache."""
    return of_environment("XDG_CACHE_HOME") or local("~/.cache", "XDG_CACHE_HOME")


def local_input(path: str | os.PathLike, flag: str) -> str:
    """As `local`, but "-", which stands for standard input, stays as it is."""
    if path == STANDARD_INPUT:
        return STANDARD_INPUT
    return expanded(path, flag)


def local_inputs(
    given: str | os.PathLike | Sequence[str | os.PathLike], flag: str
) -> list[str]:
    """One input or several, in their order, each as `local_input` gives it.

    Raises:
      PathError: As `local`; there is none, or standard input comes twice.
    """
    several = [given] if isinstance(given, str | bytes | os.PathLike) else given
    try:
        found = [local_input(path, flag) for path in several]
    except TypeError:
        raise PathError(
            f"{flag}={given!r}: a path or several, not {type(given).__name__}."
        ) from None
    if not found:
        raise PathError(f"{flag}: no file is given.")
    if found.count(STANDARD_INPUT) > 1:
        raise PathError(f"{flag}: standard input (-) can be read only once.")
    return found


def source(place: str | os.PathLike, flag: str) -> str:
    """As `local` for a place that parameters come from; prefixes such as hf: stay.

    A repository of the hub ("owner/name") and two places with a comma between them are
    such places too.
    """
    prefix, parts = _split(_text(place, flag))
    return prefix + ",".join(expanded(part, flag) for part in parts)


def whole_source(place: str | os.PathLike, flag: str) -> str:
    """As `source`, each folder by its whole path; names of the hub's stay."""
    prefix, parts = _split(source(place, flag))
    keep = prefix == "hf:"
    whole = (p if keep and is_hub_name(p) else os.path.abspath(p) for p in parts)
    return prefix + ",".join(whole)


def same_source(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Whether two places of parameters are one, however they are spelled."""
    places = [_split(whole_source(place, "checkpoint")) for place in (first, second)]
    if places[0] == places[1]:
        return True
    prefixes = {prefix for prefix, _ in places}
    real = [[os.path.realpath(part) for part in parts] for _, parts in places]
    return len(prefixes) == 1 and real[0] == real[1]


def is_hub_name(place: str) -> bool:
    """Whether what follows hf: is a repository, OWNER/NAME or a short name."""
    path_like = "://" in place or place.startswith(("/", ".", "~"))
    return not path_like and not os.path.exists(place)


def _split(text: str) -> tuple[str, list[str]]:
    """Prefix of a parameter source with its colon, or "", and the places."""
    kind, colon, rest = text.partition(":")
    if colon and kind in SOURCE_KINDS:
        return kind + colon, rest.split(",")
    return "", text.split(",")


def _text(path: str | os.PathLike, flag: str) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise PathError(
            f"{flag}={path!r}: a path is text, not {type(path).__name__}."
        ) from None


def _way_out(scheme: str) -> str:
    if scheme == "file":
        return "give the path alone, without file://."
    if scheme in _WEB:
        return "URLs are not read. Download it and give the path of the file."
    return (
        "buckets are not supported yet, only folders and files. Mount the bucket "
        "(gs:// with gcsfuse) and give the path of the mount, or give a local path."
    )
