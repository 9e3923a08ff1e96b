"""The mesh: what of a model and of a batch lies on which device, and how processes meet.

A parameter's dimensions have names (`AXES`), names have an axis of the mesh (`LOGICAL`), and the compiler
makes the communication from that. Rows of a batch are split across `data`; vocabulary, heads and hidden
units across `model`. A dimension that its axis does not divide is whole on every device.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from dera_jax import lost, models
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
OPTIONS = dict(zip(VARIABLES, ("--coordinator", "--num-processes", "--process-id"), strict=True))
"""What commands call the same."""


def check_heads(mesh: Mesh | AbstractMesh, name: str, config: WeightsConfig) -> None:
    """Raises ValueError unless the mesh divides the heads of the model `name`."""
    parts, heads = mesh.shape["model"], config.num_heads
    if heads % parts:
        raise ValueError(
            f"mesh: model:{parts} does not divide the {heads} heads of {name} "
            f"({heads} = {heads // parts} × {parts} + {heads % parts})"
        )


def undivided_vocabulary(mesh: Mesh | AbstractMesh, name: str, config: WeightsConfig) -> str | None:
    """Returns a line that tells of the vocabulary of the model `name` if the mesh does not divide it."""
    parts, words = mesh.shape["model"], config.vocab_size
    if words % parts == 0:
        return None
    return (
        f"{name}: model:{parts} does not divide the vocabulary of {words} "
        f"({words} = {words // parts} × {parts} + {words % parts}): "
        "embedding and head are whole on every device"
    )


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


def mesh_of(params: PyTree) -> Mesh | None:
    """Returns the mesh that parameters lie on; None where they were put on no mesh."""
    found = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return found.mesh if isinstance(found, NamedSharding) else None


def choose_mesh(bytes_held: int) -> Mesh | None:
    """Returns a mesh of all devices for so many bytes of parameters; None where there is one device.

    As few devices share the parameters as leave half of each one's memory for the rest, so that as many
    rows as can be go side by side.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    stats = jax.local_devices()[0].memory_stats() or {}
    return parse_mesh(_fitting(bytes_held, len(devices), stats.get("bytes_limit")))


def _fitting(bytes_held: int, count: int, memory: int | None) -> str:
    model = 1
    while memory and bytes_held / model > memory / 2 and count % (2 * model) == 0:
        model *= 2
    return f"data:{count // model},model:{model}"


def axes_of(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Returns the names of a parameter's dimensions; None where one is never split.

    Example: `("blocks", "3", "attention", "out", "lora_a")` of shape (64, 8) is (heads, None).
    """
    axes = AXES.get(path[-2] if len(path) > 1 else "", ())
    if not axes or len(shape) != len(axes):
        return (None,) * len(shape)  # norms, biases, what has a single output, and numbers such as β
    return {"lora_a": (axes[0], None), "lora_b": (None, axes[1])}.get(path[-1].rstrip("0123456789"), axes)


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


def constrain_rows(tree: PyTree, mesh: Mesh | None, axis: int | None = 0) -> PyTree:
    """Returns arrays under `jit` with their rows, along `axis`, across `data`; None is no mesh.

    Caches, the only arrays of four dimensions, have their heads across `model`.

    Args:
      axis: None: rows are not split.
    """
    if mesh is None:
        return tree

    def constrain(value):
        rows = (None,) if axis is None else (*[None] * axis, "rows")
        names = (*rows, "heads" if value.ndim == 4 else None)
        return jax.lax.with_sharding_constraint(value, _split(names[: value.ndim], value.shape, mesh))

    return jax.tree.map(constrain, tree)


def by_rows(function: Callable, mesh: Mesh | None) -> Callable:
    """Returns `function(first, rows, *rest)` on whole rows as one that each device runs on its own.

    `first` is the number of the first of them in the batch; `rest` is the same everywhere.
    """
    if mesh is None or mesh.shape["data"] == 1:
        return partial(function, jnp.int32(0))

    def own(firsts, rows, *rest):
        return function(firsts[0], rows, *rest)

    def split(rows, *rest):
        data = PartitionSpec("data")
        specs = data, data, *(PartitionSpec() for _ in rest)
        on_each = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=data, axis_names={"data"})
        # Split as the rows are: a device's number is not known where `model` is the compiler's.
        firsts = jnp.arange(mesh.shape["data"], dtype=jnp.int32) * (len(rows) // mesh.shape["data"])
        return on_each(firsts, rows, *rest)

    return split


def gathered(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Returns arrays under `jit` whole on every device, for the host to read."""
    return (
        tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
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
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 60.0,
) -> None:
    """Joins this process to the others of its run, if it is told of any, before anything is computed.

    Args:
      coordinator: address of the first process, `host:port`; `auto` asks the cluster (Slurm, TPU pods)
        for all three. What is None comes from the environment (`VARIABLES`).
      num_processes: ≥ 1.
      process_id: from 0 to num_processes − 1.
      timeout: seconds in which all of them must have come.

    Raises:
      ValueError: only some of the three, or values that cannot be; the processes have not met in time.
    """
    given = zip((coordinator, num_processes, process_id), VARIABLES, strict=True)
    address, count, number = (os.environ.get(name) if value is None else value for value, name in given)
    if address is count is number is None:
        return
    if address == "auto":
        if os.environ.get(VARIABLES[0]) == "auto":  # which JAX would take for an address
            del os.environ[VARIABLES[0]]
        return _meet((), "the coordinator that the cluster (Slurm, TPU pod …) names", timeout)
    if missing := [n for n, value in zip(VARIABLES, (address, count, number), strict=True) if value is None]:
        told = ", ".join(f"{OPTIONS[name]} (or {name})" for name in missing)
        raise ValueError(
            f"processes: expected a coordinator host:port, their number and this one's; missing {told}"
        )
    host, _, port = str(address).rpartition(":")
    numbers = all(text.isascii() and text.isdigit() for text in (port, str(count), str(number)))
    if not (host and numbers and int(number) < int(count)):
        got = f"{address!r}, {count!r}, {number!r}"
        raise ValueError(
            f"processes: expected a coordinator host:port, their number N and this one's below N; got {got}"
        )
    _meet((address, int(count), int(number)), f"the coordinator {address}, {count} processes", timeout)


def _meet(arguments: tuple, where: str, timeout: float) -> None:
    """Calls `jax.distributed.initialize`, which would take down the process itself after its own time-out."""
    failures: list[Exception] = []

    def meet():
        try:
            with lost.ending_by_one_line():
                jax.distributed.initialize(*arguments, initialization_timeout=math.ceil(timeout) + 3600)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ValueError(f"{where}: not reached by all of them within {timeout:g} s")
    if failures and not arguments and "should be defined" in str(failures[0]):
        raise ValueError(
            "--coordinator=auto: found no cluster here (Slurm, TPU pod …) that tells who the others are; give "
            f"{', '.join(OPTIONS.values())} in each process, or none of them for a single process"
        ) from failures[0]
    if failures:
        raise ValueError(f"{where}: {' '.join(str(failures[0]).split())}") from failures[0]


def _check_rows(rows: int, parts: int, mesh: Mesh) -> None:
    if rows % parts:
        raise ValueError(f"batch: expected a multiple of {parts} rows (mesh {mesh_text(mesh)}), found {rows}")


def _shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    def sharding(path, value):
        return _sharding(".".join(str(key.key) for key in path), getattr(value, "shape", ()), mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return _split(axes_of(tuple(path.split(".")), shape), shape, mesh)


def _split(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    wanted = [LOGICAL.get(name) for name in names]
    split = [a if a and size % mesh.shape[a] == 0 else None for a, size in zip(wanted, shape, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*split))


def _put(value: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if isinstance(value, jax.Array) and value.sharding == sharding:
        return value
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
