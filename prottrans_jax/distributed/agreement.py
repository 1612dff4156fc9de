"""Whether all hosts of a run were given the same settings, data and packages.

Hosts that differ would train on, each with its own learning rate or rows, and end
with status 0.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
from importlib import metadata
import json
import pathlib
import platform
from typing import Any

# Of these a difference changes what is compiled or which rows are read.
_PACKAGES = (
    *("prottrans_jax", "jax", "jaxlib", "libtpu", "flax", "optax", "numpy"),
    *("orbax-checkpoint", "seqio", "tensorflow", "array_record"),
)
# Each host may have the records at a place of its own; the data itself is compared.
_OF_THE_HOST = ("DATA_DIR", "data_dir")


class DisagreementError(ValueError):
    """Hosts differ; a line for each host and setting."""


def check(
    gather: Callable[[str, Any], Sequence[Any]],
    whoami: str,
    groups: Mapping[str, Mapping[str, Any]],
) -> None:
    """Compares every group of values with those of process 0.

    Args:
      gather: Called with a name and this process's value; returns those of all
        processes, in order. See `multihost.gather`.
      whoami: This process, for messages.
      groups: Kind of value ("package", "setting", "data") -> name -> value. Later ones
        are compared only if the ones before are equal: one setting changes many values
        of the data.

    Raises:
      DisagreementError: On every process alike.
    """
    for kind, values in groups.items():
        flat = flatten(values)
        digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
        if len(set(gather(f"{kind} digests", digest))) == 1:
            continue
        hosts = gather(f"{kind}s", {"who": whoami, "values": flat})
        reference = hosts[0]["values"]
        lines = [
            f"process {number} ({host['who']}): {kind} {name} = "
            f"{host['values'].get(name, '(absent)')}, process 0 has "
            f"{reference.get(name, '(absent)')}"
            for number, host in enumerate(hosts)
            for name in sorted(reference.keys() | host["values"].keys())
            if host["values"].get(name) != reference.get(name)
        ]
        raise DisagreementError(
            "The hosts of this run differ; start it with the same on all:\n"
            + "\n".join(lines)
        )


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings and sequences as dotted names and printed values.

    >>> flatten({"seed": 3, "tasks": [{"rate": 1}]})
    {'seed': '3', 'tasks.0.rate': '1'}
    """
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = dict(enumerate(value)).items()
    else:
        return {name: str(value)}
    flat: dict[str, str] = {}
    for key, item in items:
        flat |= flatten(item, f"{name}.{key}" if name else str(key))
    return flat


def settings_of(config_text: str) -> dict[str, str]:
    """Name -> value of a resolved gin configuration, but for places of the host."""
    pairs = (line.partition(" = ") for line in config_text.splitlines())
    return {
        name: value
        for name, equals, value in pairs
        if equals and name.rpartition(".")[2] not in _OF_THE_HOST
    }


def packages() -> dict[str, str]:
    """Versions of what a step and its rows depend on, and a digest of our source."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "(not installed)"
    return versions | {"prottrans_jax's source": _source_digest()}


@functools.cache
def _source_digest() -> str:
    """SHA-256 over the Python files of the package: versions do not tell checkouts."""
    root = pathlib.Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
