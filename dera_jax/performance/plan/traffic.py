"""What a compiled program moves, sends and multiplies, on one device.

XLA's own cost analysis counts a loop's body once, and copies within fast memory as traffic. Here every
instruction that runs is charged what it reads and writes in the device's main memory (HBM):

    what lies in another space (`S(1)` is a TPU's vector memory) costs nothing
    a loop costs its body times its trips
    a fusion costs what its parameters are read for: the slice where only a slice is taken
    an update in place (dynamic-update-slice, scatter) costs the update

A product whose tiles read an operand more than once is charged for it once: the text does not tell.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from dera_jax.performance.plan.hlo import Computation, Instruction, Program, Shape

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
FREE = (
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
)
"""Instructions that move nothing."""
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
"""Targets of custom calls that move nothing."""
SLICES = ("dynamic-slice", "gather", "slice")
"""Of the first operand, as much is read as comes out."""
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""The first operand becomes the result, in place; what is written is the operand at this position."""
THROUGH = ("bitcast", "convert", "copy", "reshape", "transpose")
"""Within a fusion: as much is read of the operand as of the result."""
SEMAPHORES = 2
"""The memory space of what asynchronous instructions wait for."""


@dataclass(frozen=True)
class Collective:
    """A transfer between devices."""

    kind: str
    shapes: tuple[Shape, ...]
    """Of the result on one device."""
    group: int
    """Devices that take part in one."""
    op_name: str
    count: float = 1.0
    """How often it runs."""

    @property
    def nbytes(self) -> int:
        """Bytes of the result on one device, each time."""
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that one device sends, each time, round a ring."""
        share = (self.group - 1) / self.group
        factors = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1.0, "collective-permute": 1.0}
        return self.nbytes * factors.get(self.kind, share)


@dataclass(frozen=True)
class Cost:
    """What running something takes."""

    read: float = 0.0
    """Bytes from HBM."""
    written: float = 0.0
    """Bytes to HBM."""
    flops: float = 0.0
    """Of matrix products and convolutions; a multiplication and an addition are two."""
    collectives: tuple[Collective, ...] = ()
    unknown: tuple[str, ...] = ()
    """Loops whose trips the text does not tell; they are counted once."""

    @property
    def moved(self) -> float:
        """Bytes from and to HBM."""
        return self.read + self.written

    def __add__(self, other: "Cost") -> "Cost":
        return _total((self, other))

    def __mul__(self, times: float) -> "Cost":
        collectives = tuple(replace(each, count=each.count * times) for each in self.collectives)
        return Cost(self.read * times, self.written * times, self.flops * times, collectives, self.unknown)


@dataclass(frozen=True)
class Loop:
    """A loop of a computation."""

    name: str
    trips: int | None
    """None where the text does not tell."""
    body: Cost
    """Of one trip."""


@dataclass
class Walk:
    """Goes through a program and adds up."""

    program: Program
    _costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Of the whole program."""
        return self.cost_of(self.program.entry.name)

    @property
    def loops(self) -> list[Loop]:
        """Of the program itself, not those within them."""
        entry = self.program.entry
        return [self._loop(entry, at) for at in entry.instructions.values() if at.opcode == "while"]

    def cost_of(self, name: str) -> Cost:
        """Returns what one run of a computation takes."""
        if name not in self._costs:
            inside = self._named(name)
            self._costs[name] = _total(self.cost_at(inside, at) for at in inside.instructions.values())
        return self._costs[name]

    def cost_at(self, inside: Computation, at: Instruction) -> Cost:
        """Returns what one run of an instruction takes."""
        if at.opcode == "while":
            loop = self._loop(inside, at)
            return loop.body * (loop.trips or 1) + Cost(unknown=() if loop.trips else (loop.name,))
        if at.opcode == "conditional":
            return max((self.cost_of(name) for name in _branches(at)), key=lambda cost: cost.moved)
        if at.opcode in ("call", "async-start"):
            return self.cost_of(at.called("calls") or at.called("to_apply"))
        return Cost(*self._moved(inside, at)) + self._computed(inside, at)

    def _named(self, name: str) -> Computation:
        return self.program.computations[name]

    def _moved(self, inside: Computation, at: Instruction) -> tuple[float, float]:
        """Returns the bytes that are read and written."""
        if at.opcode in FREE or at.opcode.endswith(("-done", "-update")):
            return 0.0, 0.0
        if at.opcode == "custom-call" and any(f'"{name}"' in at.attributes for name in FREE_CALLS):
            return 0.0, 0.0
        sources = [operand.shapes for operand in inside.operands(at)]
        if at.opcode == "fusion":
            fused = self._named(at.called())
            read = sum(self._share_read(fused, n) * _hbm(shapes) for n, shapes in enumerate(sources))
            return read, self._written(at.shapes, fused)
        results = _results(at, sources)
        if at.base in UPDATES:
            update = sources[UPDATES[at.base]][0]
            share = update.size / max(results[0].size, 1)
            return float(sum(map(_hbm, sources[1:]))), share * results[0].hbm
        if at.base in SLICES:
            share = min(1.0, sum(shape.size for shape in results) / max(sources[0][0].size, 1))
            return share * _hbm(sources[0]) + sum(map(_hbm, sources[1:])), float(_hbm(results))
        return float(sum(map(_hbm, sources))), float(_hbm(results))

    def _written(self, shapes: tuple[Shape, ...], fused: Computation) -> float:
        made = fused.operands(fused.root) if fused.root.opcode == "tuple" else [fused.root]
        if len(made) != len(shapes):
            return float(_hbm(shapes))
        return sum(s.hbm * self._share_written(fused, one) for s, one in zip(shapes, made, strict=True))

    def _share_written(self, fused: Computation, at: Instruction) -> float:
        """Returns how much of a result is written: less than 1 where it is an update in place."""
        if at.opcode == "bitcast":
            return self._share_written(fused, fused.operands(at)[0])
        if at.opcode == "fusion" and len(at.shapes) == 1:
            inner = self._named(at.called())
            return self._share_written(inner, inner.root)
        if at.opcode in UPDATES:
            update = fused.operands(at)[UPDATES[at.opcode]].shapes[0]
            return min(1.0, update.size / max(at.shapes[0].size, 1))
        return 1.0

    def _share_read(self, fused: Computation, number: int) -> float:
        """Returns how much of a fusion's operand is read."""
        parameter = fused.parameter(number)
        return 0.0 if parameter is None else self._share_used(fused, parameter)

    def _share_used(self, fused: Computation, at: Instruction) -> float:
        share, size = float(at is fused.root), max(sum(s.size for s in at.shapes), 1)
        for user in fused.users[at.name]:
            first = user.operands[0] == at.name and at.name not in user.operands[1:]
            if user.opcode in SLICES and first:
                share += user.shapes[0].size / size
            elif user.opcode in UPDATES and first and _ends_in_root(fused, user):
                continue  # in place: what is not updated is not touched
            elif user.opcode in THROUGH:
                share += self._share_used(fused, user)
            elif user.opcode == "fusion":
                inner, places = self._named(user.called()), enumerate(user.operands)
                share += sum(self._share_read(inner, n) for n, name in places if name == at.name)
            else:
                return 1.0
        return min(1.0, share)

    def _computed(self, inside: Computation, at: Instruction) -> Cost:
        """Returns the products and transfers of an instruction, those within a fusion too."""
        if at.opcode == "fusion":
            fused = self._named(at.called())
            return _total(self._computed(fused, each) for each in fused.instructions.values())
        if at.base in COLLECTIVES:
            sources = [operand.shapes for operand in inside.operands(at)]
            shapes = tuple(shape for shape in _results(at, sources) if shape.space != SEMAPHORES)
            return Cost(collectives=(Collective(at.base, shapes, _group_size(at), at.op_name),))
        if at.opcode in ("dot", "convolution"):
            left, right = (operand.shapes[0] for operand in inside.operands(at))
            count = _dot_flops if at.opcode == "dot" else _convolution_flops
            return Cost(flops=count(at, left, right))
        return Cost()

    def _loop(self, inside: Computation, at: Instruction) -> Loop:
        body = self.cost_of(at.called("body")) + self.cost_of(at.called("condition"))
        return Loop(at.op_name or at.name, self._trips(inside, at), body)

    def _trips(self, inside: Computation, at: Instruction) -> int | None:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', at.attributes)
        if known:
            return int(known[1])
        condition = self._named(at.called("condition"))
        compare = condition.root
        if compare.opcode == "fusion":
            compare = self._named(compare.called()).root
        bounds = condition.operands(condition.root)
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes or len(bounds) != 2:
            return None
        # The counter goes up by one; both are numbers, or parts of what the loop starts with.
        start, stop = (_number(inside, at, value) for value in bounds)
        return None if start is None or stop is None else stop - start


def _total(costs: Iterable[Cost]) -> Cost:
    read = written = flops = 0.0
    collectives: list[Collective] = []
    unknown: list[str] = []
    for cost in costs:
        read, written, flops = read + cost.read, written + cost.written, flops + cost.flops
        collectives += cost.collectives
        unknown += cost.unknown
    return Cost(read, written, flops, tuple(collectives), tuple(unknown))


def _hbm(shapes: Iterable[Shape]) -> int:
    return sum(shape.hbm for shape in shapes)


def _results(at: Instruction, sources: list[tuple[Shape, ...]]) -> list[Shape]:
    """Returns the shapes that an instruction makes; what starts one asynchronously names its operands too."""
    results = list(at.shapes)
    if at.opcode != at.base and at.base != "all-reduce":
        for shape in (shape for shapes in sources for shape in shapes):
            if shape in results:
                results.remove(shape)
        results = [shape for shape in results if shape.space != SEMAPHORES]
    return results


def _branches(at: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", at.attributes)
    if found:
        return [name.strip(" %") for name in found[1].split(",")]
    return [at.called("true_computation"), at.called("false_computation")]


def _ends_in_root(fused: Computation, at: Instruction) -> bool:
    """Whether nothing but the fusion's own result is made of `at`."""
    if at is fused.root:
        return True
    users = fused.users[at.name]
    return bool(users) and all(u.opcode in ("bitcast", "tuple") and _ends_in_root(fused, u) for u in users)


def _number(inside: Computation, loop: Instruction, value: Instruction) -> int | None:
    """Returns what a loop's condition compares, as it is before the first trip; None if that is no constant."""
    if value.opcode == "get-tuple-element":
        (start,) = inside.operands(loop)
        if start.opcode != "tuple":
            return None
        value = inside.operands(start)[value.number("index")]
    while value.opcode in ("bitcast", "convert", "copy"):
        (value,) = inside.operands(value)
    return int(value.inside) if value.opcode == "constant" and value.inside.isdigit() else None


def _dot_flops(at: Instruction, left: Shape, _: Shape) -> float:
    found = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", at.attributes)
    contracted = [int(i) for i in found[1].split(",")] if found else []
    return 2.0 * at.shapes[0].size * math.prod(left.dims[i] for i in contracted)


def _convolution_flops(at: Instruction, left: Shape, right: Shape) -> float:
    """Returns two per pair of numbers that meet; those in padding and in the holes of dilation do not."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", at.attributes).groups()
    shapes = (left, right, at.shapes[0])
    of_left, of_right, of_out = (dict(zip(*each, strict=True)) for each in zip(
        labels, (shape.dims for shape in shapes), strict=True
    ))  # fmt: skip
    window = re.search(r"window=\{([^}]*)\}", at.attributes)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    flops = 2.0 * of_out["b"] * of_out["f"] * of_right["i"]
    for axis in filter(str.isdigit, of_out):
        stride, low, holes, spread = (
            int(given.get(name, default).split("x")[int(axis)].split("_")[0])
            for name, default in (
                *(("stride", "1x1x1x1"), ("pad", "0_0x0_0x0_0x0_0")),
                *(("lhs_dilate", "1x1x1x1"), ("rhs_dilate", "1x1x1x1")),
            )
        )
        places = np.arange(of_out[axis])[:, None] * stride - low + np.arange(of_right[axis]) * spread
        flops *= np.count_nonzero((places % holes == 0) & (places >= 0) & (places < of_left[axis] * holes))
    return float(flops)


def _group_size(at: Instruction) -> int:
    if at.base == "collective-permute":
        return 2
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", at.attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", at.attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", at.attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 1
