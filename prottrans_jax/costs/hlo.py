"""Parses optimised HLO text: computations, instructions, and how often each runs."""

from collections.abc import Iterator
import dataclasses
import math
import re

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4,
    "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]\w*)\[([0-9,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(.*)$"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, and whether it is in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        """Size without the padding of the layout."""
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
        """The computation named by an attribute, for example `body=` or `calls=`."""
        name = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return name[1] if name else None


class Module:
    """A parsed optimised HLO module.

    Args:
      text: Result of `compiled.as_text()`.

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
            elif match := _INSTRUCTION.match(line):
                root, name, type_text, opcode, arguments, attributes = match.groups()
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

    def walk(
        self,
        name: str,
        times: float,
        fused: bool,
        trip_counts: dict[str, int | None],
    ) -> Iterator[tuple[str, float, bool]]:
        """Yields computations that run, how often, and whether inside a fusion."""
        yield name, times, fused
        for instruction in self.computations[name].values():
            if instruction.opcode == "while":
                body = instruction.called("body")
                trips = self._trip_count(name, instruction)
                trip_counts[body or ""] = trips
                yield from self.walk(
                    body or "", times * (trips or 1), fused, trip_counts
                )
            elif instruction.opcode in ("fusion", "call", "async-start"):
                inner = instruction.called("calls") or instruction.called("to_apply")
                if inner in self.computations:
                    inside = fused or instruction.opcode == "fusion"
                    yield from self.walk(inner or "", times, inside, trip_counts)
            elif instruction.opcode == "conditional":
                branches = _NAME.findall(
                    (re.search(r"branch_computations=\{(.*?)\}", instruction.attributes)
                     or [""] * 2)[1]
                )  # fmt: skip
                for branch in branches:  # Only one runs: this is an upper bound.
                    yield from self.walk(branch, times, fused, trip_counts)

    def _trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Iterations of a loop with constant start, step and limit; None: unknown."""
        if count := re.search(r'known_trip_count[":{n ]+(\d+)', loop.attributes):
            return int(count[1])
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

    def operand_shapes(self, computation: str, instruction: Instruction) -> list[Shape]:
        """Shapes of the operands, in order; a tuple gives all its parts."""
        lines = self.computations[computation]
        return [
            shape
            for name in instruction.operands
            if name in lines
            for shape in lines[name].shapes
        ]


def _origin(lines: dict[str, Instruction], name: str) -> Instruction | None:
    """Follows a name through copies and bitcasts to its source."""
    line = lines.get(name)
    while line is not None and line.opcode in ("copy", "bitcast", "copy-done"):
        line = lines.get(line.operands[0])
    return line


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in _BYTES:
            # Memory space 0, HBM, is not written in the text; others are on the chip.
            yield Shape(dtype, split(dims), bool(re.search(r"S\([1-9]", layout)))


def split(numbers: str, separator: str = ",") -> tuple[int, ...]:
    """Numbers of a list in HLO's notation."""
    return tuple(int(n) for n in numbers.split(separator) if n)
