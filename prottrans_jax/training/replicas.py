"""Finds replicas of a parameter that differ: silent corruption of a device.

Devices that hold the same part of a parameter hold the same bits, as all of them apply
the same update. A flipped bit in one replica stays there, spreads through its
gradients, and no loss shows it. Each device folds its own part of every parameter into
one word; the words of replicas are compared.

The fold is the sum over words w[i] of (2 i + 1) w[i], modulo 2^32. An odd factor is
invertible, so a change of any single bit of one word always changes the sum.
"""

from collections.abc import Sequence
import dataclasses

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import PyTree, UInt32
import numpy as np

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


class CorruptionError(RuntimeError):
    """Replicas of a parameter differ; the message names host, device and parameter."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A group of replicas that are not equal.

    Attributes:
      parameter: name of the parameter.
      devices: those whose bits differ from the majority; all of the group if there is
        no majority, as with two replicas.
      count: number of replicas in the group.
    """

    parameter: str
    devices: tuple[jax.Device, ...]
    count: int


class ReplicaCheck:
    """Compares the replicas of parameters on a mesh, without a copy of them.

    Args:
      mesh: of the parameters.
      shapes: tree of objects with shape and dtype.
      shardings: tree of `jax.sharding.NamedSharding` on the mesh.
    """

    def __init__(self, mesh: jax.sharding.Mesh, shapes: PyTree, shardings: PyTree):
        self._devices = list(mesh.devices.flat)
        rows = {device: row for row, device in enumerate(self._devices)}
        paths_and_shapes = jax.tree_util.tree_leaves_with_path(shapes)
        leaves = jax.tree.leaves(shardings)
        # Position of a leaf, its name, and the rows of each group of replicas.
        self._checked: list[tuple[int, str, list[list[int]]]] = []
        for number, ((path, shape), sharding) in enumerate(
            zip(paths_and_shapes, leaves, strict=True)
        ):
            groups = _groups(sharding, shape.shape, rows)
            if groups:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                self._checked.append((number, name, groups))
        numbers = [number for number, _, _ in self._checked]
        every_axis = jax.sharding.PartitionSpec(mesh.axis_names)

        def fold_own_parts(parts):
            return jnp.stack([_fold(part) for part in parts])[None]

        def fold(params):
            chosen = [jax.tree.leaves(params)[number] for number in numbers]
            # In manual mode each device reads its own replica; XLA believes all equal.
            return jax.shard_map(
                fold_own_parts,
                mesh=mesh,
                in_specs=([leaves[number].spec for number in numbers],),
                out_specs=every_axis,
                check_vma=False,
            )(chosen)

        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._fold = jax.jit(fold, out_shardings=replicated)

    @property
    def compares(self) -> bool:
        """Whether any parameter has a replica."""
        return bool(self._checked)

    def fold(self, params: PyTree) -> UInt32[jax.Array, "devices parameters"]:
        """Starts the fold of every part on every device."""
        return self._fold(params)

    def faults(self, folds: UInt32[np.ndarray, "devices parameters"]) -> list[Fault]:
        """Groups of replicas that differ, by the result of `fold`."""
        return [
            self._fault(name, folds[rows, column], rows)
            for column, (_, name, groups) in enumerate(self._checked)
            for rows in groups
            if (folds[rows, column] != folds[rows[0], column]).any()
        ]

    def _fault(self, name: str, words: np.ndarray, rows: Sequence[int]) -> Fault:
        values, counts = np.unique(words, return_counts=True)
        odd = list(rows)
        if 2 * counts.max() > len(rows):
            usual = values[counts.argmax()]
            odd = [row for row, word in zip(rows, words, strict=True) if word != usual]
        return Fault(name, tuple(self._devices[row] for row in odd), len(rows))


def describe(faults: Sequence[Fault], hosts: Sequence[str]) -> str:
    """One line that names devices, hosts and parameters.

    Args:
      faults: at least one.
      hosts: name of each process, by its index.
    """
    by_devices: dict[tuple[jax.Device, ...], list[Fault]] = {}
    for fault in faults:
        by_devices.setdefault(fault.devices, []).append(fault)
    parts = []
    for devices, group in by_devices.items():
        where = " or ".join(
            f"device {device.id} ({device.device_kind}) of process "
            f"{device.process_index} ({hosts[device.process_index]})"
            for device in devices[:4]
        )
        more = f" or {len(devices) - 4} more" if len(devices) > 4 else ""
        names = [fault.parameter for fault in group]
        listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        count = group[0].count
        others = f"from the other {count - len(devices)} of {count} replicas"
        if count == len(devices):
            others = f"between {count} replicas"
        parts.append(
            f"{where}{more}: {len(names)} parameter(s) differ {others}: {listed}"
        )
    return "; ".join(parts)


def _groups(
    sharding: jax.sharding.NamedSharding,
    shape: tuple[int, ...],
    rows: dict[jax.Device, int],
) -> list[list[int]]:
    """Rows of the devices that hold the same part, where these are several."""
    parts: dict[tuple, list[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        key = tuple((part.start, part.stop) for part in index)
        parts.setdefault(key, []).append(rows[device])
    return [sorted(group) for group in parts.values() if len(group) > 1]


def _fold(part: jax.Array) -> UInt32[jax.Array, ""]:
    """Sum of words times odd positions; fused into one pass over the part."""
    word = _WORDS[part.dtype.itemsize]
    if part.dtype == jnp.bool_:
        words = part.astype(word)
    else:
        words = lax.bitcast_convert_type(part, word)  # 8 bytes: another axis of 2.
    words = words.astype(jnp.uint32)
    # Not over a flattened array, which would be a copy where the layout is tiled.
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)
