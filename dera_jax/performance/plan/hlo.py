"""The text of a compiled program (HLO), parsed: computations of instructions, with where arrays lie."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.$-]+) = (.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.$-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.$-]+)")


@dataclass(frozen=True)
class Shape:
    """An array's type and where it lies."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""
    """Such as `1,0:T(8,128)(2,1)S(1)`: dimensions from the fastest up, tiles, memory space."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return -(-self.size * self._bits // 8)

    @property
    def space(self) -> int:
        """Memory space; 0 is HBM."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0

    @cached_property
    def padded(self) -> int:
        """Bytes in memory: every tile is whole."""
        order, _, rest = self.layout.partition(":")
        order = [int(i) for i in order.split(",") if i] or range(len(self.dims))[::-1]
        dims = [self.dims[i] for i in reversed(order)]
        tiles = re.search(r"T((?:\([\d,]+\))+)", rest)
        for text in re.findall(r"\(([\d,]+)\)", tiles[1]) if tiles else ():
            tile = [int(size) for size in text.split(",")]
            dims = [1] * (len(tile) - len(dims)) + dims
            outer, inner = dims[: -len(tile)], dims[-len(tile) :]
            dims = outer + [-(-size // part) for size, part in zip(inner, tile, strict=True)] + tile
        return -(-math.prod(dims) * self._bits // 8)

    @property
    def hbm(self) -> int:
        """Bytes in HBM."""
        return 0 if self.space else self.padded

    @property
    def _bits(self) -> int:
        packed = re.search(r"E\((\d+)\)", self.layout)
        if packed:
            return int(packed[1])
        number = re.search(r"\d+", self.dtype)
        return max(8, int(number[0])) if number else 8 * (self.dtype == "pred")

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of the result; of all arrays in it where it is a tuple."""
    operands: tuple[str, ...]
    inside: str
    """What stands in the parentheses: a constant's value, a parameter's number."""
    attributes: str

    def called(self, attribute: str = "calls") -> str | None:
        """Returns the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.$-]+)", self.attributes)
        return found and found[1]

    def number(self, attribute: str) -> int | None:
        """Returns an attribute's value."""
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found[1]) if found else None

    @property
    def base(self) -> str:
        """The opcode, without what says that it only starts."""
        return self.opcode.removesuffix("-start")

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, as far as that is known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order they run."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction
    """Whose result is the computation's."""

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Of each instruction, those that take it."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for at in self.instructions.values():
            for name in dict.fromkeys(at.operands):
                found[name].append(at)
        return found

    def operands(self, at: Instruction) -> list[Instruction]:
        """Returns what an instruction takes."""
        return [self.instructions[name] for name in at.operands]

    def parameter(self, number: int) -> Instruction | None:
        """Returns a parameter by its number; None where nothing takes it."""
        parameters = (at for at in self.instructions.values() if at.opcode == "parameter")
        return next((at for at in parameters if int(at.inside) == number), None)


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: Computation

    @property
    def argument_bytes(self) -> int:
        """Bytes of the program's arguments in HBM."""
        parameters = (at for at in self.entry.instructions.values() if at.opcode == "parameter")
        return sum(shape.hbm for at in parameters for shape in at.shapes)


def parse(text: str) -> Program:
    """Returns the program of `compiled.as_text()`.

    Raises:
      ValueError: text without an entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, head, lines = None, None, []
    for line in text.splitlines():
        if opening := _HEAD.match(line):
            head, lines = opening, []
        elif head and (found := _LINE.match(line)):
            lines.append((found[1], _instruction(found[2], found[3])))
        elif head and line.startswith("}") and not line.startswith("}}"):  # the end of metadata
            root = next(at for is_root, at in lines if is_root)
            computation = Computation(head[2], {at.name: at for _, at in lines}, root)
            computations[head[2]] = computation
            entry, head = computation if head[1] else entry, None
    if entry is None:
        raise ValueError(f"HLO: expected text with an ENTRY computation, found {text[:40]!r}")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end:].partition("(")
    start = end + len(opcode)
    stop = _closing(text, start)
    inside = text[start + 1 : stop]
    shapes = tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), layout or "")
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    return Instruction(name, opcode.strip(), shapes, tuple(_NAME.findall(inside)), inside, text[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"HLO: a parenthesis is not closed in {text[:80]!r}")
