"""Sharding of arrays: the device mesh, and the only table from logical to mesh axes.

Axes of parameters and activations have logical names ("embed", "mlp", "batch", ...). A
scheme is a list of rules (logical name, mesh axis), read in order: the first rule whose
mesh axis is still unused in the array applies. "batch" comes first, so `("embed",
"data")` shards the parameters of a fully sharded run but not its activations, whose
"batch" already uses "data". This is the only module that names mesh axes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

LogicalAxes = tuple[str | None, ...]
Rules = tuple[tuple[str, str | None], ...]
PyTree = Any

_BATCH: Rules = (("batch", "data"),)
_TENSOR: Rules = (
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
)
_FULLY_SHARDED: Rules = (("embed", "data"),)
# Names that no scheme shards, listed so that a misspelt name is an error.
_REPLICATED: Rules = tuple(
    (name, None)
    for name in (
        "kv",
        "length",
        "kv_length",
        "layers",
        "relpos_buckets",
        "position",
        "token_types",
        "classes",
        # About 30 pieces: too small to shard, and not divisible by a power of two.
        "small_vocab",
    )
)

SCHEMES: Mapping[str, Rules] = {
    "data_parallel": _BATCH,
    "tensor_parallel": _BATCH + _TENSOR,
    "fully_sharded": _BATCH + _FULLY_SHARDED,
    "2d": _BATCH + _TENSOR + _FULLY_SHARDED,
    # "2d", and the residual stream, where "model" is unused, is sharded along the
    # sequence (Korthikanti et al. 2022). Arrays saved by rematerialisation shrink by
    # the size of "model"; each block gathers and scatters instead of all-reducing.
    "2d_sequence": _BATCH + _TENSOR + _FULLY_SHARDED + (("length", "model"),),
}
_NEEDS_MODEL_AXIS = ("tensor_parallel", "2d", "2d_sequence")


def make_mesh(
    data: int = -1,
    model: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices as a mesh with axes "data" and "model".

    On a TPU the axes follow the torus, with "model" on neighbouring chips. Elsewhere
    "model" runs over consecutive devices, which share the fast links on GPU machines.
    Devices of a topology description, without hardware, are accepted too.

    Args:
      data: Size of "data"; -1: the number of devices divided by `model`.
      model: Size of "model"; -1: the number of devices divided by `data`.
      devices: Devices of the mesh; None: all devices of this run.

    Raises:
      ValueError: The product of the sizes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    n = len(devices)
    if data == -1 and model == -1:
        raise ValueError("data and model are both -1: give at least one size.")
    if data == -1 and model > 0 and n % model == 0:
        data = n // model
    elif model == -1 and data > 0 and n % data == 0:
        model = n // data
    if data < 1 or model < 1 or data * model != n:
        raise ValueError(
            f"A mesh of data={data} times model={model} does not use exactly the {n} "
            f"devices. Let data * model = {n}, set one of them to -1, or use fewer "
            "devices (num_devices)."
        )
    return Mesh(
        _arrange(devices, data, model),
        ("data", "model"),
        # With jax.make_mesh's default, Explicit, logical constraints are assertions.
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def _arrange(devices: Sequence[jax.Device], data: int, model: int) -> np.ndarray:
    """Devices as an array [data, model], with close neighbours along "model"."""
    by_chip: dict[tuple[int, ...], list[jax.Device]] = {}
    if devices[0].platform == "tpu":
        for device in devices:
            by_chip.setdefault(tuple(device.coords), []).append(device)
    cores = len(devices) // len(by_chip) if by_chip else 1
    kind = getattr(devices[0], "device_kind", "")
    if cores == 1 or kind in ("TPU v2", "TPU v3") or (model % cores and data % cores):
        return _lay_out((data, model), devices)
    # Chips after v3 with two devices each (no megacore) are not supported by
    # create_device_mesh: arrange the chips, then put the cores of a chip side by side.
    split_model = model % cores == 0
    chips = _lay_out(
        (data, model // cores) if split_model else (data // cores, model),
        [group[0] for group in by_chip.values()],
    )
    arranged = np.empty((*chips.shape, cores), dtype=object)
    for index, first in np.ndenumerate(chips):
        arranged[index] = sorted(by_chip[tuple(first.coords)], key=lambda d: d.id)
    if not split_model:  # [data / cores, model, cores] -> [data / cores, cores, model]
        arranged = arranged.swapaxes(1, 2)
    return arranged.reshape(data, model)


def _lay_out(shape: tuple[int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    return mesh_utils.create_device_mesh(
        shape, devices=devices, allow_split_physical_axes=True
    )


def is_axes(value: object) -> bool:
    """Whether a value is the logical axes of an array: None or a tuple of names."""
    return value is None or (
        type(value) is tuple and all(a is None or isinstance(a, str) for a in value)
    )


def logical_axes(boxed: PyTree) -> PyTree:
    """Logical axis names of a tree of Linen's boxed parameters.

    Args:
      boxed: Result of `init` (or of `jax.eval_shape`): leaves boxed by
        `nn.with_logical_partitioning`. A leaf without a box gets None for every axis.

    Returns:
      The same tree, unboxed, with a tuple of names in place of every array.
    """

    def names(
        leaf: nn.Partitioned | jax.Array | np.ndarray | jax.ShapeDtypeStruct,
    ) -> LogicalAxes:
        if isinstance(leaf, nn.Partitioned):
            return tuple(leaf.names)
        return (None,) * len(leaf.shape)

    return jax.tree.map(
        names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Partitioner:
    """A mesh and a scheme, which give the sharding of every array.

    Args:
      scheme: A key of `SCHEMES`. "data_parallel": batch over "data", parameters
        replicated. "tensor_parallel": also kernels over "model". "fully_sharded":
        parameters and optimizer state over "data" too. "2d": both. "2d_sequence": both,
        and the residual stream over "model" along the sequence.
      data: Size of the mesh axis "data"; -1: all remaining devices.
      model: Size of the mesh axis "model"; -1: all remaining devices.
      num_devices: Number of devices to use, the first ones; None: all.
      devices: Devices to use, real or of a topology; None: the devices of this run.
      extra_rules: (logical name, mesh axis or None) pairs, read before the scheme's.

    Raises:
      ValueError: Unknown scheme, sizes that do not fit the devices, or a "model" axis
        that the scheme does not use.
    """

    scheme: str = "data_parallel"
    data: int = -1
    model: int | Literal[-1] = 1
    num_devices: int | None = None
    devices: Sequence[jax.Device] | None = None
    extra_rules: Sequence[tuple[str, str | None]] = ()

    def __post_init__(self):
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"Unknown partitioning scheme {self.scheme!r}. "
                f"There are: {', '.join(SCHEMES)}.{_nearest(self.scheme, SCHEMES)}"
            )
        if self.model > 1 and self.scheme not in _NEEDS_MODEL_AXIS:
            raise ValueError(
                f"Scheme {self.scheme!r} shards nothing over the mesh axis 'model', so "
                f"with model={self.model} each {self.model} devices do the same work. "
                f"Set model=1, or choose one of {', '.join(_NEEDS_MODEL_AXIS)}."
            )
        for rule in self.extra_rules:
            if len(rule) != 2 or rule[1] not in ("data", "model", None):
                raise ValueError(
                    f"extra_rules holds {rule!r}; each must be (logical name, mesh "
                    "axis) with mesh axis 'data', 'model' or None."
                )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The device mesh, axes ("data", "model")."""
        devices = list(jax.devices() if self.devices is None else self.devices)
        if self.num_devices is not None:
            if not 0 < self.num_devices <= len(devices):
                raise ValueError(
                    f"num_devices={self.num_devices}, but there are {len(devices)} "
                    f"devices. Give a number from 1 to {len(devices)}."
                )
            devices = devices[: self.num_devices]
        return make_mesh(self.data, self.model, devices)

    @functools.cached_property
    def rules(self) -> Rules:
        """The rule table: (logical name, mesh axis) pairs; the first match applies."""
        rules = (*((n, m) for n, m in self.extra_rules), *SCHEMES[self.scheme])
        named = {name for name, _ in rules}
        every = (*_BATCH, *_TENSOR, *_FULLY_SHARDED, *_REPLICATED)
        rest = dict.fromkeys(name for name, _ in every if name not in named)
        return (*rules, *((name, None) for name in rest))

    @property
    def compiler_options(self) -> dict[str, bool]:
        """Compiler options of `jax.jit` for programs on this mesh.

        With several virtual CPU devices in a process, XLA (jax 0.10.2) may order the
        collectives differently on each device, and a bfloat16 step then hangs.
        """
        devices = self.mesh.devices.flat
        if devices[0].platform == "cpu" and devices[0].client.local_device_count() > 1:
            return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
        return {}

    @contextlib.contextmanager
    def scope(self) -> Iterator[Mesh]:
        """Context in which to trace: logical constraints refer to this mesh."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield self.mesh

    def spec(self, axes: LogicalAxes | None) -> PartitionSpec:
        """The mesh axes of an array with these logical axes."""
        if axes is None:
            return PartitionSpec()
        names = {name for name, _ in self.rules}
        for name in axes:
            if name is not None and name not in names:
                raise ValueError(
                    f"Logical axis {name!r} of {axes} is in no rule. Known: "
                    f"{', '.join(sorted(names))}.{_nearest(name, names)} A new name "
                    f"needs extra_rules=(({name!r}, None),) or an entry in the table."
                )
        return PartitionSpec(*(nn.logical_to_mesh_axes(axes, self.rules) or ()))

    def shardings(self, axes: PyTree, shapes: PyTree) -> PyTree:
        """Shardings of a tree of arrays, checked against their shapes.

        Args:
          axes: Tree of logical-axis tuples (None: replicated).
          shapes: The same tree of arrays or `jax.ShapeDtypeStruct`s.

        Returns:
          The same tree of NamedShardings.

        Raises:
          ValueError: A mesh axis does not divide a dimension.
        """

        def place(
            path: tuple,
            axes: LogicalAxes | None,
            array: jax.Array | np.ndarray | jax.ShapeDtypeStruct,
        ) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return NamedSharding(self.mesh, self._checked(name, axes, array.shape))

        return jax.tree_util.tree_map_with_path(place, axes, shapes, is_leaf=is_axes)

    def _checked(
        self, name: str, axes: LogicalAxes | None, shape: tuple[int, ...]
    ) -> PartitionSpec:
        if axes is not None and len(axes) != len(shape):
            raise ValueError(f"{name} has shape {shape} but logical axes {axes}.")
        spec = self.spec(axes)
        for dim, mesh_axis in enumerate(spec):
            if mesh_axis is not None and shape[dim] % self.mesh.shape[mesh_axis]:
                assert axes is not None
                raise ValueError(
                    f"{name}: dimension {dim} ({axes[dim]}) has size {shape[dim]}, "
                    f"which mesh axis {mesh_axis!r} of size "
                    f"{self.mesh.shape[mesh_axis]} does not divide. Choose another "
                    f"{mesh_axis!r} size, or keep that dimension whole with "
                    f"extra_rules=(({axes[dim]!r}, None),)."
                )
        return spec

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows over "data", other dimensions whole; for all features of a batch."""
        return NamedSharding(self.mesh, self.spec(("batch",)))

    def host_rows(self, batch_size: int) -> np.ndarray:
        """Rows of the global batch that this process must provide.

        Processes whose devices share a replica of the model have the same rows. On a
        torus the rows of a process need not be consecutive.

        Args:
          batch_size: Rows of the global batch.

        Returns:
          Row numbers in ascending order, int64 [local rows].

        Raises:
          ValueError: The mesh axis "data" does not divide the batch.
        """
        self._checked("batch", ("batch",), (batch_size,))
        sharding = self.batch_sharding
        # Not addressable_devices_indices_map: a topology's devices are not addressable.
        is_local = np.zeros(batch_size, dtype=bool)
        device: jax.Device
        for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
            if device.process_index == jax.process_index():
                is_local[rows] = True
        return np.flatnonzero(is_local)

    def put_batch(
        self, local_batch: Mapping[str, np.ndarray], batch_size: int
    ) -> dict[str, jax.Array]:
        """Makes global arrays, sharded by rows, from this process's part of a batch.

        Args:
          local_batch: Features, each [local rows, ...], rows as `host_rows` lists them.
          batch_size: Rows of the global batch.

        Returns:
          Features, each a global array [batch_size, ...].

        Raises:
          ValueError: The number of rows of a feature is not that of `host_rows`.
        """
        rows = self.host_rows(batch_size)

        def put(name: str, local: np.ndarray) -> jax.Array:
            if local.shape[0] != len(rows):
                raise ValueError(
                    f"Feature {name!r} has {local.shape[0]} rows; this process feeds "
                    f"{len(rows)} of the {batch_size} rows of a batch (host_rows)."
                )
            shape = (batch_size, *local.shape[1:])

            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                first, end, _ = index[0].indices(batch_size)
                # The rows of a shard are consecutive, and all belong to this process.
                start = int(np.searchsorted(rows, first))
                return local[start : start + end - first]

            return jax.make_array_from_callback(shape, self.batch_sharding, shard)

        return {name: put(name, np.asarray(x)) for name, x in local_batch.items()}


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
