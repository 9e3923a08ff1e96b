"""TPU chips and the slices that they come in. One table; standard library only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclass(frozen=True)
class Chip:
    """One generation; figures are of a chip."""

    name: str
    hbm: float
    """Bytes of main memory."""
    bandwidth: float
    """Bytes a second from and to it."""
    flops: float
    """Operations a second in bfloat16, at most; a multiplication and an addition are two."""
    ici: float
    """Bytes a second that it sends to its neighbours, over all links."""
    shapes: tuple[str, ...]
    """Of slices, from the smallest."""
    devices: int = 1
    """What JAX sees of a chip: 2 where each of its cores is a device."""
    cloud: str | None = None
    """How names of slices in the cloud begin."""
    counted: int = 1
    """What such a name counts of a chip: 2 where it counts cores."""
    core_mode: str | None = None
    """What libtpu has to be told for one device per chip."""


# v4:    https://cloud.google.com/tpu/docs/v4                    (links: https://jax-ml.github.io/scaling-book/tpus)
# v5e:   https://cloud.google.com/tpu/docs/v5e
# v5p:   https://cloud.google.com/tpu/docs/v5p
# v6e:   https://cloud.google.com/tpu/docs/v6e
# tpu7x: https://cloud.google.com/tpu/docs/tpu7x
# Where a page says GB and another GiB, the smaller is taken. Bandwidths of links are given both ways there;
# one way is half of it.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32e9, 1200e9, 275e12, 270e9, _CUBES, cloud="v4", counted=2, core_mode="megacore"),
        Chip("v5e", 16e9, 819e9, 197e12, 200e9, _FLAT, cloud="v5litepod"),
        Chip("v5p", 95e9, 2765e9, 459e12, 600e9, _CUBES, cloud="v5p", counted=2),
        Chip("v6e", 32e9, 1638e9, 918e12, 400e9, _FLAT, cloud="v6e"),
        Chip("tpu7x", 192e9, 7380e9, 2307e12, 600e9, _CUBES, devices=2),
    )
}


@dataclass(frozen=True)
class Slice:
    """Chips of one generation, linked in a grid."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Such as v5e:2x4."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def devices(self) -> int:
        """How many JAX sees."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def hbm(self) -> float:
        """Bytes of main memory of a device."""
        return self.chip.hbm / self.chip.devices

    def seconds(self, moved: float, flops: float) -> float:
        """Returns the least time that a device takes for bytes and operations: the longer of the two."""
        return max(moved / self.chip.bandwidth, flops / self.chip.flops) * self.chip.devices


def parse_slice(text: str) -> Slice:
    """Returns the slice of a topology, `v5e:2x4`, or of its name in the cloud, `v5litepod-8`.

    >>> parse_slice("v5p-16").name
    'v5p:2x2x2'

    Raises:
      ValueError: none of those that are known; with those of its chip, or all of them.
    """
    for chip in CHIPS.values():
        for slice_ in slices(chip):
            count = math.prod(slice_.shape) * chip.counted
            if text in (slice_.name, f"{chip.cloud}-{count}"):
                return slice_
    meant = [c for c in CHIPS.values() if text.startswith((f"{c.name}:", f"{c.cloud}-")) or text == c.name]
    raise ValueError(f"topology: expected one of {known(meant or CHIPS.values())}; got {text!r}")


def slices(chip: Chip) -> list[Slice]:
    """Returns the slices of a generation, from the smallest."""
    return [Slice(chip, tuple(map(int, shape.split("x")))) for shape in chip.shapes]


def known(chips: Iterable[Chip]) -> str:
    """Returns all slices of `chips` in a line."""
    return "; ".join(
        f"{chip.name}:{'|'.join(chip.shapes)}" + (f" ({chip.cloud}-N)" if chip.cloud else "")
        for chip in chips
    )
