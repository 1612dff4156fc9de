"""Reads what a compiled step does from its optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once: a scanned stack of 24 layers
looks like one layer. Here every computation counts as often as it runs. All figures are
of one device, since the text is the program of one device.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4,
    "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
# These move no data: names for parts of buffers, or the end of something counted.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call "
    "after-all partition-id replica-id opt-barrier domain async-start".split()
)
_SPREAD = "async_collective_fusion"  # Computations with a part of a collective.

_SHAPE = re.compile(r"\b([a-z]\w*)\[([0-9,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(.*)$"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, and whether it lives in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        """Size without the padding of its layout."""
        return math.prod(self.dims) * _BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # More than one for a tuple.
    operands: tuple[str, ...]
    arguments: str  # Between the parentheses, e.g. the value of a constant.
    attributes: str
    is_root: bool

    def called(self, attribute: str) -> str | None:
        """The computation that e.g. `body=` or `calls=` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Collective:
    """All communications of one kind.

    Attributes:
      count: How often one runs in a step.
      payload_bytes: Size of their results (of operands for a reduce-scatter).
      wire_bytes: What one device sends, at least: a ring's share of the payload.
    """

    count: float
    payload_bytes: float
    wire_bytes: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one device does in a step.

    Attributes:
      flops: Of matrix products and convolutions; a multiply-add is 2.
      bytes: Read from and written to main memory (HBM), as far as the program says.
      collectives: By kind.
      trip_counts: Of each loop, by name of its body; None if the text does not say
        (its body then counts once).
    """

    flops: float
    bytes: float
    collectives: dict[str, Collective]
    trip_counts: dict[str, int | None]


class Module:
    """An optimised HLO module, parsed.

    Args:
      text: What `compiled.as_text()` gives.

    Raises:
      ValueError: The text has no entry computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if not line.startswith(" "):
                if header := _COMPUTATION.match(line):
                    current = self.computations.setdefault(header[2], {})
                    if header[1]:
                        self.entry = header[2]
            elif found := _INSTRUCTION.match(line):
                root, name, type_text, opcode, arguments, attributes = found.groups()
                current[name] = Instruction(
                    name,
                    opcode,
                    tuple(_shapes(type_text)),
                    tuple(_NAME.findall(arguments)),
                    arguments,
                    attributes,
                    bool(root),
                )
        if not self.entry:
            raise ValueError("No ENTRY computation: this is not HLO text.")

    def costs(self, loops_run: bool = True) -> Costs:
        """Adds up a step.

        Args:
          loops_run: Count bodies of loops as often as they run; False counts them once,
            as `cost_analysis` does.
        """
        flops = bytes_ = 0.0
        trip_counts: dict[str, int | None] = {}
        found: list[_Found] = []
        for name, times, fused in self._walk(self.entry, 1.0, False, trip_counts):
            times = times if loops_run else 1.0
            for line in self.computations[name].values():
                flops += times * self._flops(name, line)
                if not fused:
                    bytes_ += times * self._bytes(name, line)
                kind = line.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    # XLA:TPU fuses an all-reduce and the slice that is kept of it.
                    kind = "reduce-scatter" if "all-reduce-scatter" in name else kind
                    channel = re.search(r"channel_id=(\d+)", line.attributes)
                    found.append(
                        _Found(
                            channel[1] if channel else "",
                            name.startswith(_SPREAD),
                            kind,
                            times,
                            *self._communication(name, line, kind),
                        )
                    )
        kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
        for one in _once_where_spread(found):
            for index, value in enumerate((1.0, one.payload, one.wire)):
                kinds[one.kind][index] += one.times * value
        return Costs(
            flops,
            bytes_,
            {kind: Collective(*values) for kind, values in sorted(kinds.items())},
            trip_counts,
        )

    def _walk(
        self,
        name: str,
        times: float,
        fused: bool,
        trip_counts: dict[str, int | None],
    ) -> Iterator[tuple[str, float, bool]]:
        """Computations that run, how often, and whether inside a fusion."""
        yield name, times, fused
        for instruction in self.computations[name].values():
            if instruction.opcode == "while":
                body = instruction.called("body")
                trips = self._trip_count(name, instruction)
                trip_counts[body or ""] = trips
                yield from self._walk(
                    body or "", times * (trips or 1), fused, trip_counts
                )
            elif instruction.opcode in ("fusion", "call", "async-start"):
                inner = instruction.called("calls") or instruction.called("to_apply")
                if inner in self.computations:
                    inside = fused or instruction.opcode == "fusion"
                    yield from self._walk(inner or "", times, inside, trip_counts)
            elif instruction.opcode == "conditional":
                branches = _NAME.findall(
                    (re.search(r"branch_computations=\{(.*?)\}", instruction.attributes)
                     or [""] * 2)[1]
                )  # fmt: skip
                for branch in branches:  # Only one runs: an upper bound.
                    yield from self._walk(branch, times, fused, trip_counts)

    def _trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Turns of a loop that counts from a constant, by a constant, below one."""
        if known := re.search(r'known_trip_count[":{n ]+(\d+)', loop.attributes):
            return int(known[1])
        body, condition = (
            self.computations.get(loop.called(part) or "", {})
            for part in ("body", "condition")
        )
        test = next((line for line in condition.values() if line.is_root), None)
        if test is None or "direction=LT" not in test.attributes:
            return None
        counter, limit = (_origin(condition, name) for name in test.operands)
        position = re.search(r"index=(\d+)", counter.attributes if counter else "")
        if position is None or limit is None or limit.opcode != "constant":
            return None
        at = int(position[1])
        end = next(line for line in body.values() if line.is_root)
        following = _origin(body, end.operands[at])
        start = self._start(computation, loop, at)
        if following is None or following.opcode != "add" or start is None:
            return None
        steps = [
            int(line.arguments)
            for line in (_origin(body, name) for name in following.operands)
            if line is not None and line.opcode == "constant"
        ]
        if len(steps) != 1 or steps[0] < 1:
            return None
        return max(0, math.ceil((int(limit.arguments) - start) / steps[0]))

    def _start(self, computation: str, loop: Instruction, at: int) -> int | None:
        lines = self.computations[computation]
        initial = _origin(lines, loop.operands[0])
        if initial is None or initial.opcode != "tuple":
            return None
        value = _origin(lines, initial.operands[at])
        if value is not None and value.opcode == "constant":
            return int(value.arguments)
        return None

    def _operand_shapes(
        self, computation: str, instruction: Instruction
    ) -> list[Shape]:
        lines = self.computations[computation]
        return [
            shape
            for name in instruction.operands
            if name in lines
            for shape in lines[name].shapes
        ]

    # --------------------------------------------------------------------- FLOPs

    def _flops(self, computation: str, instruction: Instruction) -> float:
        if instruction.opcode == "dot":
            lhs = self._operand_shapes(computation, instruction)[0]
            contracted = re.search(
                r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes
            )
            sizes = [
                lhs.dims[int(d)] for d in _split(contracted[1] if contracted else "")
            ]
            return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(sizes)
        if instruction.opcode == "convolution":
            lhs, rhs = self._operand_shapes(computation, instruction)[:2]
            return _convolution_flops(lhs, rhs, instruction)
        return 0.0

    # -------------------------------------------------------------------- traffic

    def _bytes(self, computation: str, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return 0.0
        operands = self._operand_shapes(computation, instruction)
        if opcode.endswith("-start") and operands:
            # The result names the operand again: only what arrives has moved.
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
            if inner in self.computations:
                reads, writes = self._fusion_slices[inner]
                if inner.startswith(_SPREAD):
                    # The collective's buffers pass through unread.
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

    @functools.cached_property
    def _fusion_slices(self) -> "_FusionSlices":
        return _FusionSlices(self.computations)

    # -------------------------------------------------------------- communication

    def _communication(
        self, computation: str, instruction: Instruction, kind: str
    ) -> tuple[float, float]:
        """(payload bytes, bytes that a device sends)."""
        operands = self._operand_shapes(computation, instruction)
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


class _Found(NamedTuple):
    """A collective as it stands in the text."""

    channel: str
    spread: bool
    kind: str
    times: float
    payload: float
    wire: float


def _once_where_spread(found: list[_Found]) -> list[_Found]:
    """Keeps one of each collective that stands in several places of the text.

    XLA:TPU spreads a collective over the fusions, and turns of a loop, that it overlaps
    with. All name its channel; it runs as often as the place where it starts, which is
    outside of those loops.
    """
    spread = {one.channel for one in found if one.spread and one.channel}
    kept = [one for one in found if one.channel not in spread]
    for channel in spread:
        kept.append(min((f for f in found if f.channel == channel), key=_times))
    return kept


def _times(one: _Found) -> float:
    return one.times


class _FusionSlices(dict):
    """Of each fused computation: bytes really read of a parameter, written of a result.

    A fusion that slices a stacked parameter reads one slice of it, and one that updates
    a slice in place writes no more than that.
    """

    def __init__(self, computations: dict[str, dict[str, Instruction]]):
        super().__init__()
        self._computations = computations

    def __missing__(self, name: str) -> tuple[dict[int, float], dict[int, float]]:
        lines = self._computations[name]
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for line in lines.values():
            for operand in line.operands:
                users[operand].append(line)

        def uses(name: str) -> list[tuple[str, Instruction]]:
            found = []
            for user in users[name]:
                if user.opcode == "bitcast":
                    found += uses(user.name)
                else:
                    found.append((name, user))
            return found

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


def _origin(lines: dict[str, Instruction], name: str) -> Instruction | None:
    """What a name stands for behind copies and casts of the same value."""
    line = lines.get(name)
    while line is not None and line.opcode in ("copy", "bitcast", "copy-done"):
        line = lines.get(line.operands[0])
    return line


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in _BYTES:
            # Memory space 0 is HBM and not written; others are on the chip.
            yield Shape(dtype, _split(dims), bool(re.search(r"S\([1-9]", layout)))


def _split(numbers: str, separator: str = ",") -> tuple[int, ...]:
    return tuple(int(n) for n in numbers.split(separator) if n)


def _hbm(shapes) -> float:
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


def _aliases(attributes: str) -> Iterator[tuple[int, int]]:
    """(result, operand) pairs that are one buffer."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", attributes)
    for out, operand in re.findall(r"\{(\d+)\}: \((\d+)", found[1] if found else ""):
        yield int(out), int(operand)


def _group_size(attributes: str) -> int:
    """Devices of a group, in the three ways of writing `replica_groups`."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(_split(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return math.prod(_split(iota[1])[1:])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 2  # collective-permute lists pairs; the share is not used.


def _convolution_flops(lhs: Shape, rhs: Shape, instruction: Instruction) -> float:
    """As XLA counts: only positions that meet neither padding nor dilation's holes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    of_lhs, of_rhs, of_out = labels.groups()
    out = instruction.shapes[0]
    window = re.search(r"window=\{(.*?)\}", instruction.attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    spatial = sorted(label for label in of_out if label.isdigit())

    def field(name: str, default: str) -> list[str]:
        given = fields.get(name)
        return given.split("x") if given else [default] * len(spatial)

    padding, strides = field("pad", "0_0"), field("stride", "1")
    lhs_dilation, rhs_dilation = field("lhs_dilate", "1"), field("rhs_dilate", "1")
    positions = 1
    for i, label in enumerate(spatial):
        positions *= _valid_positions(
            lhs.dims[of_lhs.index(label)],
            rhs.dims[of_rhs.index(label)],
            out.dims[of_out.index(label)],
            int(padding[i].split("_")[0]),
            int(strides[i]),
            int(lhs_dilation[i]),
            int(rhs_dilation[i]),
        )
    inputs = rhs.dims[of_rhs.index("i")]  # Of one group.
    batch, features = (out.dims[of_out.index(label)] for label in "bf")
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
