"""The mesh: what of a model and of a batch lies on which device, and how processes meet.

A parameter's dimensions have names (`AXES`), names have an axis of the mesh (`LOGICAL`), and the compiler
makes the communication from that. Rows of a batch are split across `data`; vocabulary, heads and hidden
units across `model`. A dimension that its axis does not divide is whole on every device.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from dera_jax import models
from dera_jax.devices.mesh import mesh_text
from dera_jax.models.linear import WeightsConfig

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
