"""The mesh: how many devices divide the batch, and how many a model."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jaxtyping import PyTree

MESH_AXES = ("data", "model")


def parse_sizes(text: str) -> tuple[int, int] | None:
    """Returns the sizes of a mesh's axes from text such as `data:2,model:4`; None for another form.

    >>> parse_sizes("model:4"), parse_sizes("data:0,model:2"), parse_sizes("rows:2")
    ((1, 4), None, None)
    """
    parts = [part.strip().partition(":")[::2] for part in text.split(",")]
    sizes = {name: int(size) for name, size in parts if size.isascii() and size.isdigit()}
    if len(sizes) != len(parts) or not sizes.keys() <= set(MESH_AXES) or not all(sizes.values()):
        return None
    return sizes.get("data", 1), sizes.get("model", 1)


def parse_mesh(text: str | None = None) -> Mesh:
    """Returns the mesh of all devices that `text`, such as `data:2,model:4`, describes.

    Args:
      text: sizes of the axes; one left out is 1. None splits rows over all devices.

    Raises:
      ValueError: another form, or sizes that do not make up the devices there are.
    """
    devices = jax.devices()
    text = f"data:{len(devices)}" if text is None else text
    shape = parse_sizes(text)
    if shape is None or math.prod(shape) != len(devices):
        there = f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
        raise ValueError(f"mesh: expected data:N,model:M with N × M = {len(devices)} ({there}), got {text!r}")
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


class Group(NamedTuple):
    """Processes that decode together; others take other cells."""

    mesh: Mesh
    """Of their devices."""
    number: int
    """From 0, of `count` groups."""
    count: int
    writes: bool
    """Whether this process is the one of its group that writes what they all have."""


def own_group(mesh: Mesh) -> Group:
    """Returns the group of this process: those whose devices share a row of the mesh.

    Example: `data:2,model:4` on two processes of four devices each is two groups with `data:1,model:4`;
    `model:8` is one group, in which both processes take every step together.

    Raises:
      ValueError: rows of the mesh that share some of their processes only.
    """
    rows = [frozenset(device.process_index for device in row) for row in mesh.devices]
    groups = sorted(set(rows), key=min)
    if sum(map(len, groups)) != len(frozenset().union(*groups)):
        raise ValueError(f"mesh: expected a model axis that ends where processes do, got {mesh_text(mesh)}")
    (number,) = (n for n, group in enumerate(groups) if jax.process_index() in group)
    own = np.array([row for row, group in zip(mesh.devices, rows, strict=True) if group == groups[number]])
    axes = dict(axis_names=MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return Group(Mesh(own, **axes), number, len(groups), jax.process_index() == min(groups[number]))


def mesh_text(mesh: Mesh | AbstractMesh, groups: int = 1) -> str:
    """Returns what `parse_mesh` reads: `data:2,model:4`.

    Args:
      groups: that have a mesh like this one, their rows side by side.
    """
    return ",".join(f"{axis}:{size * (groups if axis == 'data' else 1)}" for axis, size in mesh.shape.items())


def rows_for(mesh: Mesh | AbstractMesh | None, rows: int) -> int:
    """Returns the rows of a batch: `rows`, or as many more as make them equally many on every device.

    >>> rows_for(None, 5), rows_for(AbstractMesh((4, 2), MESH_AXES), 5)
    (5, 8)
    """
    return rows + -rows % mesh.shape["data"] if mesh else rows


def mesh_of(params: PyTree) -> Mesh | None:
    """Returns the mesh that parameters lie on; None where they were put on no mesh."""
    found = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return found.mesh if isinstance(found, NamedSharding) else None


def open_mesh(text: str | None, held: Callable[[], int]) -> Mesh | None:
    """Returns the mesh of all devices of all processes; None is one device, where none is described.

    As few devices share the parameters as leave half of each one's memory for the rest, so that as many
    rows as can be go side by side.

    Args:
      text: as of `parse_mesh`; None leaves it to the parameters.
      held: returns their bytes.

    Raises:
      ValueError: as `parse_mesh`.
    """
    if text is not None:
        return parse_mesh(text)
    count = jax.device_count()
    if count == 1:
        return None
    stats = jax.local_devices()[0].memory_stats() or {}
    return parse_mesh(_fitting(held(), count, stats.get("bytes_limit")))


def _fitting(bytes_held: int, count: int, memory: int | None) -> str:
    model = 1
    while memory and bytes_held / model > memory / 2 and count % (2 * model) == 0:
        model *= 2
    return f"data:{count // model},model:{model}"
