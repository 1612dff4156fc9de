"""Compiles a training step for absent devices, and reports its memory and cost."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import os
import time
from typing import Any

import jax

from prottrans_jax import types
from prottrans_jax.costs import hardware, hlo, hlo_costs
from prottrans_jax.training import train_state, train_step

GIB = hardware.GIB
# Otherwise libtpu looks for a TPU in this machine, logs that there is none, and refuses
# a second process. Compilation needs no TPU.
_COMPILER_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class OutOfMemoryError(RuntimeError):
    """The step does not fit into a device's memory; holds XLA's message."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of a slice, as the compiler describes them.

    Attributes:
      name: Name of the slice, e.g. "v3:16x32".
      chip: Published peaks of one *device* (on v2 and v3 a chip is two devices).
      devices: For `partitioning.Partitioner`.
    """

    name: str
    chip: hardware.Chip
    devices: Sequence[jax.Device]


def describe(name: str) -> Topology:
    """Describes a TPU slice, e.g. "v3:16x32": 16 x 32 chips, 1,024 cores.

    Raises:
      ValueError: libtpu is missing, or does not know the slice.
    """
    from jax.experimental import topologies

    for variable, value in _COMPILER_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    kind = name.split(":")[0]
    if kind not in hardware.CHIPS:
        raise ValueError(
            f"topology {name!r}: unknown chip {kind!r}. Name one of "
            f"{', '.join(c for c in hardware.CHIPS if c.startswith('v'))}, then the "
            "chips along each axis, as in v3:16x32, v4:4x8x8 or v5e:16x16."
        )
    # Two cores of these chips are one device, as on a real v4 or v5p.
    options = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except Exception as error:  # jaxlib's own type, or RuntimeError without libtpu.
        raise ValueError(
            f"topology {name!r} cannot be described: {error}\nIs libtpu installed "
            '(pip install "prottrans_jax[train,tpu]"), and does such a slice exist? '
            "Examples: v3:16x32, v4:4x8x8, v5e:16x16."
        ) from error
    devices: Sequence[Any] = description.devices
    chips = {tuple(device.coords) for device in devices}
    share = hardware.CHIPS[kind].share(len(devices) // len(chips))
    return Topology(name, share, devices)


@dataclasses.dataclass(frozen=True)
class Report:
    """Memory and FLOPs of one training step on one device, and its minimum time.

    Attributes:
      topology: Devices that the step is compiled for.
      mesh: Sizes of the mesh axes.
      num_params: Parameters of the model.
      batch_size: Rows of the global batch.
      num_microbatches: Microbatches of a batch.
      compile_seconds: On this machine.
      argument_bytes: State and batch on one device.
      temporary_bytes: Further memory that the step needs on one device.
      model_flops: Analytic, of one device: matrix products without recomputation.
      costs: Costs of the compiled program.
      compiler: Version of libtpu.
    """

    topology: Topology
    mesh: Mapping[str, int]
    num_params: int
    batch_size: int
    num_microbatches: int
    compile_seconds: float
    argument_bytes: int
    temporary_bytes: int
    model_flops: float
    costs: hlo_costs.Costs
    compiler: str

    @property
    def peak_bytes(self) -> int:
        """Memory of a device while the step runs; results reuse the arguments'."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def fits(self) -> bool:
        """Whether the step fits; the compiler checks only the temporaries."""
        return self.peak_bytes <= self.topology.chip.hbm_bytes

    @property
    def seconds(self) -> dict[str, float]:
        """Minimum seconds of a step by limiting resource, from published peaks.

        "interconnect" assumes that every link of a chip is busy in both directions.
        """
        chip = self.topology.chip
        sent = sum(c.wire_bytes for c in self.costs.collectives.values())
        return {
            "compute": self.costs.flops / chip.flops,
            "memory": self.costs.bytes / chip.hbm_bandwidth,
            "interconnect": sent / chip.link_bandwidth,
        }

    @property
    def bound(self) -> tuple[str, float]:
        """The limiting resource, and the minimum seconds if all three overlap fully."""
        return max(self.seconds.items(), key=lambda item: item[1])

    @property
    def mfu(self) -> float:
        """Highest possible model FLOPs utilisation, reached at `bound`."""
        return self.model_flops / self.bound[1] / self.topology.chip.flops

    def __str__(self) -> str:
        chip, costs = self.topology.chip, self.costs
        devices = len(self.topology.devices)
        mesh = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        lines = [
            f"{devices:,} devices of TPU {chip.name}, mesh {mesh}",
            f"{self.num_params:,} parameters; batch of {self.batch_size:,} rows in "
            f"{self.num_microbatches} microbatch(es); compiled in "
            f"{self.compile_seconds:.0f} s",
            "",
            "Each device",
            f"  memory        {self.argument_bytes / GIB:.2f} GiB arguments + "
            f"{self.temporary_bytes / GIB:.2f} GiB temporaries = "
            f"{self.peak_bytes / GIB:.2f} of {chip.hbm_bytes / GIB:.1f} GiB",
            f"  FLOPs         {self.model_flops / 1e12:.2f} T of the model, "
            f"{costs.flops / 1e12:.2f} T compiled "
            f"({costs.flops / self.model_flops:.2f} times)",
        ]
        for kind, collective in costs.collectives.items():
            lines.append(
                f"  {kind:18s}  {collective.count:6,.0f} times, "
                f"{collective.payload_bytes / GIB:8.3f} GiB, sends "
                f"{collective.wire_bytes / GIB:8.3f} GiB"
            )
        unknown = [body for body, trips in costs.trip_counts.items() if trips is None]
        if unknown:
            lines.append(f"  loops of unknown length, counted once: {len(unknown)}")
        binds, least = self.bound
        lines += [
            "",
            f"Least time of a step, from published peaks {chip.source}, if compute, "
            "memory and interconnect overlap perfectly",
        ]
        lines += [f"  {name:12s}  {s:8.4f} s" for name, s in self.seconds.items()]
        lines.append(
            f"At best {least:.4f} s a step ({self.batch_size / least:,.0f} rows/s), "
            f"MFU {100 * self.mfu:.1f} %: {binds} binds."
        )
        return "\n".join(lines)


def compile_step(
    *,
    objective: types.Objective,
    optimizer: types.Optimizer,
    partitioner: types.Partitioner,
    batch_shapes: train_state.BatchShapes,
    num_microbatches: int,
    topology: Topology,
) -> tuple[Report, str]:
    """Compiles the trainer's own step on a topology's devices; nothing runs.

    Args:
      objective: As `trainer.train` takes it.
      optimizer: As `trainer.train` takes it.
      partitioner: Made with the topology's devices.
      batch_shapes: Feature to shape of the global batch.
      num_microbatches: As `trainer.train` takes it.
      topology: From `describe`.

    Returns:
      The report, and the optimised HLO text.

    Raises:
      OutOfMemoryError: The step does not fit; with XLA's message.
    """
    plan = train_state.plan(objective, optimizer, partitioner, batch_shapes)
    step = train_step.make_train_step(plan, seed=0, num_microbatches=num_microbatches)
    started = time.perf_counter()
    try:
        with partitioner.scope():
            batch = plan.abstract_batch(batch_shapes)
            compiled = step.lower(plan.abstract, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(str(error)) from error
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    assert memory is not None and text is not None  # Every XLA backend has both.
    report = Report(
        topology=topology,
        mesh=dict(partitioner.mesh.shape),
        num_params=plan.num_params,
        batch_size=plan.batch_size,
        num_microbatches=num_microbatches,
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        model_flops=objective.flops(batch_shapes) / partitioner.mesh.size,
        costs=hlo_costs.costs(hlo.Module(text)),
        compiler=importlib.metadata.version("libtpu"),
    )
    return report, text
