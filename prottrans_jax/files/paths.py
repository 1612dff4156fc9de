"""Checks and expands every path from a user, on the command line or in Python.

`~` is the home folder, because bash does not expand the `~` in `--model_dir=~/run`.
`place` also accepts folders in buckets, `gs://BUCKET/PATH` and `s3://BUCKET/PATH`; see
`buckets`. Other URLs are refused: pathlib would turn `hdfs://x` into `hdfs:/x`, a local
folder.
"""

from collections.abc import Sequence
import os
import pathlib
import re
from typing import TYPE_CHECKING, TypeAlias

from prottrans_jax.files import buckets

# On this machine a pathlib.Path, in a bucket an epath.Path, with the same methods.
if TYPE_CHECKING:
    from etils import epath

    Place: TypeAlias = pathlib.Path | epath.Path
else:  # Read by checks of annotations; what both kinds of paths are.
    Place = pathlib.PurePath

# Prefixes of parameter sources; see `prottrans_jax.checkpoints.opening`.
SOURCE_KINDS = ("hf", "t5x", "mtf")
STANDARD_INPUT = "-"
# One slash, because pathlib shortens two to one.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/")
_WEB = ("http", "https", "ftp", "ftps")


def explain(error: OSError) -> str:
    """`FILE: reason` for a system error; the message of any other OSError."""
    if error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


class PathError(ValueError):
    """An invalid path: a URL, an unknown user's home folder, or an empty string."""


def place(path: str | os.PathLike, flag: str) -> Place:
    """A path of this machine, with `~` expanded, or a place in a bucket; idempotent.

    Makes no request.

    Args:
      path: From the user.
      flag: Its flag or setting, such as "--model_dir", for errors.

    Raises:
      PathError: It is empty, in an unknown user's home, a URL that is not of a bucket,
        or of a bucket for which a package is missing.
    """
    text = place_text(path, flag)
    return buckets.path(text) if buckets.is_bucket(text) else local(text, flag)


def place_text(path: str | os.PathLike, flag: str) -> str:
    """Like `place`, but returns text: `./name` stays `./name`. Raises as `place`."""
    text = _text(path, flag)
    scheme = text.partition("://")[0]
    if not buckets.is_bucket(text):
        return expanded(text, flag)
    if "\0" in text or not text.removeprefix(f"{scheme}://").split("/")[0]:
        raise PathError(f"{flag}={text!r}: {_bucket_form(scheme)}")
    if extra := buckets.missing_extra(scheme):
        raise PathError(
            f"{flag}={text}: {scheme}:// needs packages that are not installed: "
            f"pip install 'prottrans_jax[{extra}]'"
        )
    return buckets.normalized(text)


def local(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """A path of this machine, with `~` expanded; idempotent.

    Args:
      path: From the user.
      flag: Its flag or setting, such as "--output", for errors.

    Raises:
      PathError: It is empty, a URL such as gs://bucket, or in an unknown user's home.
    """
    text = expanded(path, flag)
    plain = pathlib.Path(text)
    # `./~` and `./gs:/x` name real files, but pathlib drops their `./`.
    if str(plain).startswith("~") or _URL.match(str(plain)):
        return pathlib.Path.cwd() / plain
    return plain


def expanded(path: str | os.PathLike, flag: str) -> str:
    """Like `local`, but returns text: `./name` stays `./name`. Raises as `local`."""
    text = _text(path, flag)
    if not text:
        raise PathError(f"{flag} is empty: give a path.")
    if "\0" in text:
        raise PathError(f"{flag}={text!r}: a path cannot hold a NUL character.")
    if url := _URL.match(text):
        raise PathError(f"{flag}={text}: {_way_out(text, url[1].lower())}")
    full = os.path.expanduser(text)
    if full.startswith("~"):
        raise PathError(
            f"{flag}={text}: the home folder of {text.split('/')[0]} is not known. "
            f"Give the full path, or ./{text} for a file of that name."
        )
    return full


def of_environment(variable: str) -> pathlib.Path | None:
    """The folder in an environment variable; None: not set, or empty.

    Raises:
      PathError: As `local`.
    """
    value = os.environ.get(variable)
    return local(value, variable) if value else None


def cache_home() -> pathlib.Path:
    """Folder of the user's caches: $XDG_CACHE_HOME, or ~/.cache."""
    return of_environment("XDG_CACHE_HOME") or local("~/.cache", "XDG_CACHE_HOME")


def input_file(path: str | os.PathLike, flag: str) -> str:
    """Like `place_text`, but "-" (standard input) stays as it is."""
    if path == STANDARD_INPUT:
        return STANDARD_INPUT
    return place_text(path, flag)


def input_files(
    inputs: str | os.PathLike | Sequence[str | os.PathLike], flag: str
) -> list[str]:
    """One or several inputs, in order, each checked by `input_file`.

    Raises:
      PathError: As `place`; or there is no input, or standard input is given twice.
    """
    several = [inputs] if isinstance(inputs, str | bytes | os.PathLike) else inputs
    try:
        files = [input_file(path, flag) for path in several]
    except TypeError:
        raise PathError(
            f"{flag}={inputs!r}: a path or several, not {type(inputs).__name__}."
        ) from None
    if not files:
        raise PathError(f"{flag}: no file is given.")
    if files.count(STANDARD_INPUT) > 1:
        raise PathError(f"{flag}: standard input (-) can be read only once.")
    return files


def source(place: str | os.PathLike, flag: str) -> str:
    """Like `place_text` for a source of parameters; prefixes such as hf: stay.

    A source may also be a repository of the hub ("owner/name"), or two places separated
    by a comma.
    """
    prefix, parts = _split(_text(place, flag))
    return prefix + ",".join(place_text(part, flag) for part in parts)


def whole_source(place: str | os.PathLike, flag: str) -> str:
    """Like `source`, with absolute paths; names of repositories stay."""
    prefix, parts = _split(source(place, flag))
    keep = prefix == "hf:"
    whole = (p if keep and is_hub_name(p) else absolute(p) for p in parts)
    return prefix + ",".join(whole)


def same_source(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Whether two sources of parameters are the same, also through links."""
    places = [_split(whole_source(place, "checkpoint")) for place in (first, second)]
    if places[0] == places[1]:
        return True
    prefixes = {prefix for prefix, _ in places}
    real = [
        [p if buckets.is_bucket(p) else os.path.realpath(p) for p in parts]
        for _, parts in places
    ]
    return len(prefixes) == 1 and real[0] == real[1]


def absolute(path: str | os.PathLike) -> str:
    """Text of an absolute path; URLs of buckets stay."""
    text = os.fspath(path)
    return text if buckets.is_bucket(text) else os.path.abspath(text)


def is_hub_name(place: str) -> bool:
    """Whether the text after hf: is a repository: OWNER/NAME or a short name."""
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


def _way_out(text: str, scheme: str) -> str:
    if scheme == "file":
        return "give only the path, without file://."
    if scheme in _WEB:
        return "URLs of the web are not read. Download it and give the path."
    if scheme not in buckets.SCHEMES:
        accepted = " and ".join(f"{scheme}://" for scheme in buckets.SCHEMES)
        extras = " or ".join(
            f"'prottrans_jax[{extra}]'" for _, extra in buckets.SCHEMES.values()
        )
        return (
            f"{scheme}:// is not read. Accepted are paths of this machine and, where "
            f"buckets are, {accepted} (pip install {extras})."
        )
    if not buckets.is_bucket(text):
        return _bucket_form(scheme)
    copy = {"gs": "gcloud storage cp -r", "s3": "aws s3 cp --recursive"}[scheme]
    return (
        "buckets are not used here, only folders and files of this machine. Copy it "
        f"first ({copy} {text} .), and give that path."
    )


def _bucket_form(scheme: str) -> str:
    return f"a place in a bucket is written {scheme}://BUCKET/PATH."
