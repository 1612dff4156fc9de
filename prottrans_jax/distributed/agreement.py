"""Checks that all hosts of a run have the same settings, data and packages.

Otherwise each host would train with its own learning rate or rows, and the run would
end with status 0.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from importlib import metadata
import pathlib
import platform
from typing import Any

from prottrans_jax import differences
from prottrans_jax.files import digests

# Packages whose version changes the compiled program or the rows.
_PACKAGES = (
    *("prottrans_jax", "jax", "jaxlib", "libtpu", "flax", "optax", "numpy"),
    *("orbax-checkpoint", "seqio", "tensorflow", "array_record"),
)
# Settings that may differ: the records may be in another folder on each host. The data
# itself is compared.
_HOST_SETTINGS = ("DATA_DIR", "data_dir")


class DisagreementError(ValueError):
    """Hosts differ; the message has a line for each host and value."""


def check(
    gather: Callable[[str, Any], Sequence[Any]],
    whoami: str,
    groups: Mapping[str, Mapping[str, Any]],
) -> None:
    """Compares every group of values with those of process 0.

    Args:
      gather: Called with a name and this process's value; returns those of all
        processes, in order. See `barriers.gather`.
      whoami: Name of this process, for messages.
      groups: Kind of value ("package", "setting", "data") -> name -> value, JSON-able.
        A group is compared only if the previous ones are equal: one setting changes
        many values of the data.

    Raises:
      DisagreementError: The hosts differ; raised on every process.
    """
    for kind, values in groups.items():
        digest = digests.of_json(values)
        if len(set(gather(f"{kind} digests", digest))) == 1:
            continue
        hosts = gather(f"{kind}s", {"who": whoami, "values": values})
        lines = [
            f"process {number} ({host['who']}): {kind} {line}"
            for number, host in enumerate(hosts)
            for line in differences.lines(hosts[0]["values"], host["values"])
        ]
        raise DisagreementError(
            "The hosts of this run differ (process 0 -> other process); start it with "
            "the same values on all:\n" + "\n".join(lines)
        )


def settings_of(config_text: str) -> dict[str, str]:
    """Name -> value of a resolved gin configuration, without `_HOST_SETTINGS`."""
    pairs = (line.partition(" = ") for line in config_text.splitlines())
    return {
        name: value
        for name, equals, value in pairs
        if equals and name.rpartition(".")[2] not in _HOST_SETTINGS
    }


def packages() -> dict[str, str]:
    """Versions of Python and `_PACKAGES`, and a digest of our source."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "(not installed)"
    return versions | {"prottrans_jax's source": _source_digest()}


@functools.cache
def _source_digest() -> str:
    """SHA-256 over the package's Python files, as checkouts may share a version."""
    root = pathlib.Path(__file__).resolve().parents[1]
    digest = digests.Sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
