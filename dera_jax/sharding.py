"""The mesh: what of a model and of a batch lies on which device, and how processes meet.

A parameter's dimensions have names (`AXES`), names have an axis of the mesh (`LOGICAL`), and the compiler
makes the communication from that. Rows of a batch are split across `data`; vocabulary, heads and hidden
units across `model`. A dimension that its axis does not divide is whole on every device.
"""

import os
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from dera_jax import models
from dera_jax.models.linear import WeightsConfig

MESH_AXES = ("data", "model")
LOGICAL = {"rows": "data", "vocab": "model", "positions": "model", "heads": "model", "mlp": "model"}
"""Axes of the mesh that dimensions are split across, by their names; those not here are not split."""
AXES = {
    "embed": ("vocab", "embed"),
    "positions": ("positions", "embed"),
    "bias": ("buckets", "heads"),
    "out": ("heads", "embed"),
    "down": ("mlp", "embed"),
    "head": ("embed", "vocab"),
    **dict.fromkeys(("query", "key", "value"), ("embed", "heads")),
    **dict.fromkeys(("gate", "linear", "up", "dense"), ("embed", "mlp")),
}
"""Dimensions of the matrices, by the modules that hold them."""
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Of the environment: what `start_processes` takes where it is given nothing."""


def parse_mesh(text: str | None = None) -> Mesh:
    """Returns the mesh of all devices that `text`, such as `data:2,model:4`, describes.

    Args:
      text: sizes of the axes; one left out is 1. None splits rows over all devices.

    Raises:
      ValueError: another form, or sizes that do not make up the devices there are.
    """
    devices = jax.devices()
    text = f"data:{len(devices)}" if text is None else text
    parts = [part.strip().partition(":")[::2] for part in text.split(",")]
    sizes = {name: int(size) for name, size in parts if size.isascii() and size.isdigit()}
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    if len(sizes) != len(parts) or not sizes.keys() <= set(MESH_AXES) or np.prod(shape) != len(devices):
        there = f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
        raise ValueError(f"mesh: expected data:N,model:M with N × M = {len(devices)} ({there}), got {text!r}")
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def axes_of(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Returns the names of a parameter's dimensions; None where one is never split.

    Example: `("blocks", "3", "attention", "out", "lora_a")` of shape (64, 8) is (heads, None).
    """
    axes = AXES.get(path[-2] if len(path) > 1 else "", ())
    if len(shape) != len(axes):
        return (None,) * len(shape)  # norms, biases, and what has a single output
    return {"lora_a": (axes[0], None), "lora_b": (None, axes[1])}.get(path[-1], axes)


def param_shardings(config: WeightsConfig, mesh: Mesh) -> PyTree:
    """Returns where each parameter lies: a tree of `NamedSharding` like `models.param_shapes(config)`."""
    return _shardings(models.param_shapes(config), mesh)


def shard_flat(params: PyTree, mesh: Mesh) -> PyTree:
    """Returns parameters, however nested or by dotted paths, where they lie on the mesh; the rest is whole.

    Each process gives all of them. Example: `{"frozen": {"blocks.3.attention.out.kernel": …}, "beta": …}`.
    """
    return jax.tree.map(_put, params, _shardings(params, mesh))


def place(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Returns what `weights.read_params` asks for the place of each parameter."""
    return lambda path, shape: _sharding(path, shape, mesh)


def like_params(optimizer: optax.GradientTransformation, params: PyTree, mesh: Mesh) -> PyTree:
    """Returns where each array of `optimizer.init(params)` lies.

    Moments lie as their parameters do, counts on every device. Under `jit` nothing says so by itself:
    `jax.jit(optimizer.init, out_shardings=like_params(optimizer, params, mesh))(params)`.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        optimizer,
        lambda moment, param: param.sharding if moment.shape == param.shape else whole,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: whole,
    )


def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Returns a batch of host arrays as arrays on the mesh, the rows along `axis` across `data`.

    Each process gives its own rows, those of `local_rows`; what has no rows is the same in all.

    Raises:
      ValueError: rows that the mesh does not divide.
    """
    parts = len(local_rows(mesh, mesh.shape["data"]))

    def global_array(value):
        value, spec = np.asarray(value), PartitionSpec()
        if value.ndim > axis:
            _check_rows(value.shape[axis], parts, mesh)
            spec = PartitionSpec(*[None] * axis, LOGICAL["rows"])
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), value)

    return jax.tree.map(global_array, batch)


def shard_rows(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Returns a batch that every process has as a whole on the mesh, as `shard_batch` does."""
    with_rows = (a for a in jax.tree.leaves(batch) if np.ndim(a) > axis)
    mine = local_rows(mesh, next(with_rows).shape[axis])
    local = jax.tree.map(lambda a: np.take(a, mine, axis) if np.ndim(a) > axis else a, batch)
    return shard_batch(local, mesh, axis)


def local_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " local"]:
    """Returns which of a global batch's rows this process feeds, ascending.

    Processes that share the rows' devices (`model` reaching across them) feed the same ones.

    Raises:
      ValueError: rows that the mesh does not divide.
    """
    _check_rows(rows, mesh.shape["data"], mesh)
    split = NamedSharding(mesh, PartitionSpec(LOGICAL["rows"]))
    spans = {index[0].indices(rows) for index in split.addressable_devices_indices_map((rows,)).values()}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def start_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of its run, if it is told of any, before anything is computed.

    Args:
      coordinator: address of the first process, `host:port`; `auto` asks the cluster (Slurm, TPU pods)
        for all three. What is None comes from the environment (`VARIABLES`).
      num_processes: ≥ 1.
      process_id: from 0 to num_processes − 1.

    Raises:
      ValueError: only some of the three, or values that cannot be.
    """
    given = zip((coordinator, num_processes, process_id), VARIABLES, strict=True)
    address, count, number = (os.environ.get(name) if value is None else value for value, name in given)
    if address is count is number is None:
        return
    if address == "auto":
        return jax.distributed.initialize()
    host, _, port = str(address).rpartition(":")
    numbers = all(text.isascii() and text.isdigit() for text in (port, str(count), str(number)))
    if not (host and numbers and int(number) < int(count)):
        got = f"{address!r}, {count!r}, {number!r}"
        raise ValueError(
            f"processes: expected a coordinator host:port, their number N and this one's below N; got {got}"
        )
    jax.distributed.initialize(address, int(count), int(number))


def _check_rows(rows: int, parts: int, mesh: Mesh) -> None:
    if rows % parts:
        told = ",".join(f"{axis}:{size}" for axis, size in mesh.shape.items())
        raise ValueError(f"batch: expected a multiple of {parts} rows (mesh {told}), found {rows}")


def _shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    def sharding(path, value):
        return _sharding(".".join(str(key.key) for key in path), getattr(value, "shape", ()), mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    wanted = [LOGICAL.get(name) for name in axes_of(tuple(path.split(".")), shape)]
    split = [a if a and size % mesh.shape[a] == 0 else None for a, size in zip(wanted, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*split))


def _put(value: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
