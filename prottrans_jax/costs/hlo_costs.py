"""Sums the costs of a compiled step from its optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once: a scanned stack of 24 layers
looks like one layer. Here every computation counts as often as it runs. All figures are
for one device, since the text is the program of one device.
"""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

from prottrans_jax.costs import hlo

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# These move no data: names for parts of buffers, or ends of operations already counted.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call "
    "after-all partition-id replica-id opt-barrier domain async-start".split()
)
_SPREAD = "async_collective_fusion"  # Fusions that hold part of a collective.


@dataclasses.dataclass(frozen=True)
class Collective:
    """All communications of one kind.

    Attributes:
      count: Number of runs in a step.
      payload_bytes: Size of the results (of the operands for a reduce-scatter).
      wire_bytes: Lower bound of the bytes that one device sends: a ring's share of the
        payload.
    """

    count: float
    payload_bytes: float
    wire_bytes: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a step on one device.

    Attributes:
      flops: FLOPs of matrix products and convolutions; a multiply-add is 2.
      bytes: Bytes read from and written to main memory (HBM), according to the text.
      collectives: Collectives by kind.
      trip_counts: Iterations of each loop, by name of its body; None if the text does
        not contain the number (the body then counts once).
    """

    flops: float
    bytes: float
    collectives: dict[str, Collective]
    trip_counts: dict[str, int | None]


def costs(module: hlo.Module, loops_run: bool = True) -> Costs:
    """Sums the costs of a step.

    Args:
      module: The program of one device.
      loops_run: Whether loop bodies count as often as they run; False counts them once,
        as `cost_analysis` does.
    """
    flops = bytes_ = 0.0
    trip_counts: dict[str, int | None] = {}
    occurrences: list[_Occurrence] = []
    for name, times, fused in module.walk(module.entry, 1.0, False, trip_counts):
        times = times if loops_run else 1.0
        for line in module.computations[name].values():
            flops += times * _flops(module, name, line)
            if not fused:
                bytes_ += times * _bytes(module, name, line)
            kind = line.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # XLA:TPU fuses an all-reduce with the slice that is used of it.
                kind = "reduce-scatter" if "all-reduce-scatter" in name else kind
                channel = re.search(r"channel_id=(\d+)", line.attributes)
                occurrences.append(
                    _Occurrence(
                        channel[1] if channel else "",
                        name.startswith(_SPREAD),
                        kind,
                        times,
                        *_communication(module, name, line, kind),
                    )
                )
    kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for collective in _merge_spread(occurrences):
        for index, value in enumerate((1.0, collective.payload, collective.wire)):
            kinds[collective.kind][index] += collective.times * value
    return Costs(
        flops,
        bytes_,
        {kind: Collective(*values) for kind, values in sorted(kinds.items())},
        trip_counts,
    )


def _flops(module: hlo.Module, computation: str, instruction: hlo.Instruction) -> float:
    if instruction.opcode == "dot":
        lhs = module.operand_shapes(computation, instruction)[0]
        contracted = re.search(
            r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes
        )
        sizes = [
            lhs.dims[int(d)] for d in hlo.split(contracted[1] if contracted else "")
        ]
        return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(sizes)
    if instruction.opcode == "convolution":
        lhs, rhs = module.operand_shapes(computation, instruction)[:2]
        return _convolution_flops(lhs, rhs, instruction)
    return 0.0


def _bytes(module: hlo.Module, computation: str, instruction: hlo.Instruction) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0.0
    operands = module.operand_shapes(computation, instruction)
    if opcode.endswith("-start") and operands:
        # The result repeats the operand; only the other part is written.
        shapes = instruction.shapes
        second = opcode != "copy-start" and len(shapes) > 1
        moved = shapes[1 if second else 0]
        return moved.bytes * (not operands[0].on_chip) + _hbm([moved])
    written = _hbm(instruction.shapes)
    if opcode == "dynamic-slice":
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * _hbm(operands[1:2])
    if opcode == "fusion":
        inner = instruction.called("calls") or ""
        if inner in module.computations:
            reads, writes = _fusion_slices(module)[inner]
            if inner.startswith(_SPREAD):
                # The collective's buffers are passed through, not read.
                reads, writes = dict(reads), dict(writes)
                for out, operand in _aliases(instruction.attributes):
                    reads[operand] = writes[out] = 0.0
            read = sum(
                min(shape.bytes, reads.get(i, shape.bytes)) * (not shape.on_chip)
                for i, shape in enumerate(operands)
            )
            outputs = instruction.shapes
            written = sum(
                min(shape.bytes, writes.get(i, shape.bytes)) * (not shape.on_chip)
                for i, shape in enumerate(outputs)
            )
            return read + written
    return _hbm(operands) + written


def _communication(
    module: hlo.Module, computation: str, instruction: hlo.Instruction, kind: str
) -> tuple[float, float]:
    """(payload bytes, bytes that a device sends)."""
    operands = module.operand_shapes(computation, instruction)
    sent = sum(shape.bytes for shape in operands)
    group = _group_size(instruction.attributes)
    share = (group - 1) / group
    if kind == "all-gather":
        return sent * group, sent * (group - 1)
    if kind == "all-reduce":
        return sent, 2 * sent * share
    if kind == "collective-permute":
        return sent, sent
    return sent, sent * share


class _Occurrence(NamedTuple):
    """One occurrence of a collective in the text."""

    channel: str
    spread: bool
    kind: str
    times: float
    payload: float
    wire: float


def _merge_spread(occurrences: list[_Occurrence]) -> list[_Occurrence]:
    """Merges the occurrences of each collective that XLA:TPU spreads over the text.

    Parts of a collective are placed in the fusions and loop iterations that it overlaps
    with, all with its channel. It runs as often as its start, which is outside of those
    loops.
    """
    spread = {x.channel for x in occurrences if x.spread and x.channel}
    merged = [x for x in occurrences if x.channel not in spread]
    for channel in spread:
        parts = [x for x in occurrences if x.channel == channel]
        merged.append(min(parts, key=lambda x: x.times))
    return merged


class _FusionSlices(dict):
    """For each fused computation, bytes read of parameters and written of results.

    A fusion that slices a stacked parameter reads one slice only; one that updates a
    slice in place writes that slice only.
    """

    def __init__(self, computations: dict[str, dict[str, hlo.Instruction]]):
        super().__init__()
        self._computations = computations

    def __missing__(self, name: str) -> tuple[dict[int, float], dict[int, float]]:
        lines = self._computations[name]
        users: dict[str, list[hlo.Instruction]] = collections.defaultdict(list)
        for line in lines.values():
            for operand in line.operands:
                users[operand].append(line)

        def uses(name: str) -> list[tuple[str, hlo.Instruction]]:
            pairs = []
            for user in users[name]:
                if user.opcode == "bitcast":
                    pairs += uses(user.name)
                else:
                    pairs.append((name, user))
            return pairs

        reads: dict[int, float] = {}
        for line in lines.values():
            if line.opcode != "parameter":
                continue
            used = uses(line.name)
            sliced = 0.0
            for operand, user in used:
                if user.opcode == "dynamic-slice" and user.operands[0] == operand:
                    sliced += sum(shape.bytes for shape in user.shapes)
                elif (
                    user.opcode == "dynamic-update-slice"
                    and user.operands[0] == operand
                ):
                    pass  # Updated in place: not read.
                else:
                    break
            else:
                if used:
                    reads[int(line.arguments)] = sliced
        root = next(line for line in lines.values() if line.is_root)
        results = (
            [lines[o] for o in root.operands] if root.opcode == "tuple" else [root]
        )
        writes: dict[int, float] = {}
        for index, result in enumerate(results):
            while result.opcode == "bitcast":
                result = lines[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                update = lines[result.operands[1]].shapes
                writes[index] = sum(shape.bytes for shape in update)
        self[name] = reads, writes
        return self[name]


@functools.lru_cache(maxsize=4)
def _fusion_slices(module: hlo.Module) -> _FusionSlices:
    return _FusionSlices(module.computations)


def _hbm(shapes: Iterable[hlo.Shape]) -> float:
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


def _aliases(attributes: str) -> Iterator[tuple[int, int]]:
    """(result, operand) pairs that share a buffer."""
    pairs = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", attributes)
    for out, operand in re.findall(r"\{(\d+)\}: \((\d+)", pairs[1] if pairs else ""):
        yield int(out), int(operand)


def _group_size(attributes: str) -> int:
    """Number of devices in a group, from the three notations of `replica_groups`."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(hlo.split(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return math.prod(hlo.split(iota[1])[1:])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 2  # collective-permute lists pairs; the share is not used.


def _convolution_flops(
    lhs: hlo.Shape, rhs: hlo.Shape, instruction: hlo.Instruction
) -> float:
    """As XLA counts: without positions in padding or in the gaps of dilation."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    out = instruction.shapes[0]
    window = re.search(r"window=\{(.*?)\}", instruction.attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    spatial = sorted(label for label in out_labels if label.isdigit())

    def field(name: str, default: str) -> list[str]:
        text = fields.get(name)
        return text.split("x") if text else [default] * len(spatial)

    padding, strides = field("pad", "0_0"), field("stride", "1")
    lhs_dilation, rhs_dilation = field("lhs_dilate", "1"), field("rhs_dilate", "1")
    positions = 1
    for i, label in enumerate(spatial):
        positions *= _valid_positions(
            lhs.dims[lhs_labels.index(label)],
            rhs.dims[rhs_labels.index(label)],
            out.dims[out_labels.index(label)],
            int(padding[i].split("_")[0]),
            int(strides[i]),
            int(lhs_dilation[i]),
            int(rhs_dilation[i]),
        )
    inputs = rhs.dims[rhs_labels.index("i")]  # In one group.
    batch, features = (out.dims[out_labels.index(label)] for label in "bf")
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return 2.0 * positions * inputs * batch * features / int(groups[1] if groups else 1)


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    size: int, kernel: int, out: int, pad: int, stride: int, dilate: int, spread: int
) -> int:
    limit = (size - 1) * dilate + 1
    return sum(
        0 <= at < limit and at % dilate == 0
        for o in range(out)
        for at in range(o * stride - pad, o * stride - pad + kernel * spread, spread)
    )
