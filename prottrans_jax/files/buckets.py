"""Folders in buckets: `gs://BUCKET/PATH` (Google Cloud Storage) and `s3://BUCKET/PATH`.

A place in a bucket is an `epath.Path`, a place on this machine a `pathlib.Path`; both
have the same methods. The requests go through fsspec: gcsfs and s3fs, in the subclasses
of `gcs` and `s3`, which try again, with limits, and turn every failure into an OSError
that names the object. Orbax uses the same classes.

What a bucket does not have, and what takes its place:

  rename    An object appears at once with its whole content, when its upload ends. So a
            small file needs no temporary name. Several objects become valid together
            with a marker, which is written last and deleted first.
  append    Nothing can be appended to an object. `appending.GrowingObject` keeps the
            content in memory and uploads all of it.
  flock     A lease: an object that is created and renewed with conditional writes. See
            `leases`.
  folders   Names only; an empty folder does not exist, and creating one does nothing.
"""

import importlib.util
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etils import epath

# Scheme -> the package that reads it, and the extra that installs it.
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# etils takes TensorFlow's file systems if TensorFlow is installed, and decides at the
# first use of any path. TensorFlow's packages have no S3, and its errors are not
# OSErrors.
os.environ.setdefault("EPATH_USE_TF", "false")

_registered: set[str] = set()
# User and password of a URL, and its query, which may hold a signature or a token.
_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|\?[^\s'\"]*=[^\s'\"]*")


def is_bucket(place: str | os.PathLike) -> bool:
    """Whether a place is in a bucket."""
    return os.fspath(place).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def missing_extra(scheme: str) -> str | None:
    """The extra to install before URLs of a scheme can be used; None: installed."""
    package, extra = SCHEMES[scheme]
    needed = ("etils", "fsspec", package)
    installed = all(importlib.util.find_spec(name) for name in needed)
    return None if installed else extra


def normalized(url: str) -> str:
    """The URL without `..`, `.` and repeated slashes below the bucket."""
    scheme, _, rest = url.partition("://")
    bucket, *parts = rest.split("/")
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept = kept[:-1]
        elif part not in ("", "."):
            kept.append(part)
    return f"{scheme}://{'/'.join([bucket, *kept])}"


def path(url: str) -> "epath.Path":
    """The place of a URL. The package of its scheme must be installed."""
    from etils import epath

    _register(url.partition("://")[0])
    return epath.Path(normalized(url))


def first_line(text: str) -> str:
    """First line of the message of a library, without the secret parts of URLs."""
    return _SECRETS.sub("", (text.strip() or "no reason given").splitlines()[0])


def filesystem(place: str | os.PathLike) -> tuple[Any, str]:
    """The fsspec file system of a place in a bucket, and the place's name in it.

    The file system has, besides the methods of fsspec, `read_version(name)` and
    `write_version(name, data, version)`; see `gcs`.
    """
    import fsspec

    url = os.fspath(place)
    scheme, _, name = url.partition("://")
    _register(scheme)
    protocol = "gcs" if scheme == "gs" else scheme
    return fsspec.filesystem(protocol), name


def _register(scheme: str) -> None:
    """Makes fsspec use the file systems of this package for a scheme."""
    if scheme in _registered:
        return
    import fsspec

    # A list of names that is kept would hide what other processes write.
    for protocol in ("gcs", "gs", "s3"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault(
            "use_listings_cache", False
        )
    if scheme == "gs":
        from prottrans_jax.files import gcs

        for protocol in ("gcs", "gs"):
            fsspec.register_implementation(protocol, gcs.FileSystem, clobber=True)
    else:
        from prottrans_jax.files import s3

        fsspec.register_implementation("s3", s3.FileSystem, clobber=True)
    _registered.add(scheme)
