"""Programs compiled for a TPU that is not there: libtpu holds the whole compiler and needs no device.

Arguments are shapes with a place on the mesh, so nothing is computed and no weights are held.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dera_jax import models
from dera_jax.data.batches import Batch
from dera_jax.decoding import device_loop
from dera_jax.decoding.room import CHUNK
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, empty_state
from dera_jax.devices import placement
from dera_jax.devices.mesh import MESH_AXES
from dera_jax.models.trees import flatten, unflatten
from dera_jax.performance.plan import hlo, traffic
from dera_jax.performance.plan.chips import Slice
from dera_jax.policies.sizes import Sized
from dera_jax.rules.rule import linear_rule
from dera_jax.training import parameters
from dera_jax.training.config import PreferenceConfig, TrainConfig
from dera_jax.training.optimization import TrainState, make_optimizer, make_update
from dera_jax.training.preferences import SideBatch, preference_loss

LIBTPU = "libtpu==0.0.42.1"
"""What was tried."""
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What keeps libtpu from looking for a TPU; read when it is loaded."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Job:
    """A program to compile, with its arguments."""

    name: str
    arguments: dict[str, PyTree]
    """By what they are to the reader; `jax.ShapeDtypeStruct`s."""
    lower: Callable[[], jax.stages.Lowered]
    steps: int = 1
    """Of decoding or training that one run makes."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a job; bytes are of one device."""

    name: str
    steps: int
    arguments: dict[str, int]
    temporary: int
    """Beyond arguments, at most at a time; results that take no argument's place among it."""
    code: int
    cost: traffic.Cost | None
    """Of one run; None where the compiler found too little memory."""
    loop: traffic.Loop | None
    """The one that most is moved in."""
    padding: int = 0
    """Of arguments: what tiles add, and small ones that have no name."""
    argument_bytes: int = 0
    """Of all arguments, as the compiler lays them out."""

    @property
    def total(self) -> int:
        """Bytes that have to fit."""
        return sum(self.arguments.values()) + self.padding + self.temporary + self.code


def tpu_mesh(slice_: Slice, shape: tuple[int, int]) -> Mesh:
    """Returns a mesh of the axes data and model on the devices of a slice.

    Raises:
      ValueError: libtpu is not installed, or the shape is not that of so many devices.
    """
    if math.prod(shape) != slice_.devices:
        told = ",".join(f"{axis}:{size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise ValueError(
            f"mesh {told}: expected {slice_.devices} devices ({slice_.name}), found {math.prod(shape)}"
        )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 2, devices=tuple(_devices(slice_)))


def _devices(slice_: Slice) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for a TPU takes libtpu, on Linux; no TPU is needed: pip install {LIBTPU}"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    shape = slice_.shape + (1,) * (3 - len(slice_.shape))
    options: dict[str, Any] = {"chips_per_host_bounds": tuple(min(2, n) for n in shape[:2]) + (1,)}
    if slice_.chip.core_mode:
        options["chip_config_name"] = slice_.chip.core_mode
    return topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **options).devices


def decode_job(
    sized: Sequence[Sized],
    mesh: Mesh,
    rows: int,
    context: int,
    new_tokens: int,
    sampling: Sampling,
    steps: int = CHUNK,
) -> Job:
    """Returns a chunk of decoding steps of `rows` rows of every model.

    Args:
      context: slots of the caches, tokens: the prompt's and `new_tokens`.
      sampling: as of a command, for the mesh; its numbers stand for any.
    """
    configs, params = _joined(sized, mesh)
    state = _laid(
        jax.eval_shape(lambda: _empty(configs, params, rows, context - new_tokens, new_tokens)), mesh
    )
    eos = _whole((1,), jnp.int32, mesh)

    values, kind = jax.tree.flatten(sampling)
    numbers = [_whole((), jnp.float32, mesh) for _ in values]

    def chunk(params, state, numbers, eos):
        drawn_by = jax.tree.unflatten(kind, numbers)
        return device_loop.decode_chunk(
            configs, params, state, drawn_by, eos, rule=linear_rule, steps=steps, mesh=mesh
        )

    def lower() -> jax.stages.Lowered:
        return jax.jit(chunk, donate_argnums=1).lower(params, state, numbers, eos)

    return Job("decode", _weights(sized, params) | {"caches": state.caches}, lower, steps)


def prefill_job(sized: Sequence[Sized], mesh: Mesh, bucket: int) -> Job:
    """Returns the prefill of prompts of `bucket` tokens by every model, as many as `data` has parts."""
    configs, params = _joined(sized, mesh)
    prompts = mesh.shape["data"]
    tokens, mask = (
        tuple(_whole((prompts, bucket), dtype, mesh) for _ in sized) for dtype in (jnp.int32, jnp.bool_)
    )
    last = _whole((len(sized), prompts), jnp.int32, mesh)

    def lower() -> jax.stages.Lowered:
        return device_loop.prefill_prompts.lower(configs, params, tokens, mask, last, mesh=mesh)

    return Job("prefill", _weights(sized, params), lower)


def dpo_job(
    config: models.ModelConfig, mesh: Mesh, pairs: int, length: int, completion: int, accumulation: int = 1
) -> Job:
    """Returns a step of DPO on `pairs` pairs, the reference's log-probabilities known.

    Args:
      length: tokens of prompt and completion.
      completion: tokens of the completion.
      accumulation: parts of the batch, one after the other.
    """
    # As training does there.
    config = replace(config, scan=True)
    shapes = models.param_shapes(config)
    split = jax.eval_shape(
        lambda: parameters.split(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes))
    )
    lies = placement.place(mesh)
    learned, frozen = ({path: _placed(a, lies(path, a.shape)) for path, a in part.items()} for part in split)
    train = TrainConfig(batch_size=pairs, gradient_accumulation_steps=accumulation)
    optimizer, _ = make_optimizer(train)
    moments = jax.tree.map(
        _placed, jax.eval_shape(optimizer.init, learned), placement.like_params(optimizer, learned, mesh)
    )
    state = TrainState(learned, moments, {}, _whole((), jnp.int32, mesh))
    constants = {"frozen": frozen, "beta": _whole((), jnp.float32, mesh)}
    batch = _laid(_pairs(pairs, length, completion), mesh)
    loss = preference_loss(config, PreferenceConfig())
    update = make_update(loss, optimizer, accumulation, lies=state)
    arguments = {"trained weights, float32": learned, "moments of AdamW": moments}
    arguments |= {"frozen weights": frozen} if frozen else {}
    return Job("dpo", arguments | {"pairs": batch}, lambda: update.lower(state, constants, batch))


def compile_job(job: Job) -> Compiled:
    """Compiles a job, which takes from seconds to a minute."""
    held = {name: device_bytes(tree) for name, tree in job.arguments.items()}
    try:
        compiled = job.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(job.name, job.steps, held, _missing(str(error), sum(held.values())), 0, None, None)
    memory = compiled.memory_analysis()
    walk = traffic.Walk(hlo.parse(compiled.as_text()))
    return Compiled(
        name=job.name,
        steps=job.steps,
        arguments=held,
        temporary=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        cost=walk.cost,
        loop=max(walk.loops, key=lambda loop: loop.body.moved * (loop.trips or 1), default=None),
        padding=max(0, memory.argument_size_in_bytes - sum(held.values())),
        argument_bytes=memory.argument_size_in_bytes,
    )


def _missing(error: str, held: int) -> int:
    """Returns the bytes beyond arguments that a program that found too little memory wanted, as it says."""
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", error):
        return max(0, int(float(found[1]) * _UNITS[found[2]]) - held)
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", error):
        return int(float(found[1]) * _UNITS[found[2]])
    raise ValueError(f"the compiler ran out of memory: {' '.join(error.split())[:200]}")


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes of placed shapes on one device, without the padding of tiles."""
    return sum(
        math.prod(a.sharding.shard_shape(a.shape)) * _bits(a.dtype) // 8 for a in jax.tree.leaves(tree)
    )


def _bits(dtype) -> int:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 64
    return jax.dtypes.itemsize_bits(dtype)


def _joined(sized: Sequence[Sized], mesh: Mesh) -> tuple[tuple[models.ModelConfig, ...], tuple[PyTree, ...]]:
    """Returns configurations and placed parameters, those of one base being the same, as they decode."""
    bases: dict[Any, dict] = {}
    params = []
    for model in sized:
        shapes, lies = (
            flatten(models.param_shapes(model.config)),
            flatten(placement.param_shardings(model.config, mesh)),
        )
        base = bases.setdefault(model.base_key, {})
        own = {path: base.get(path) or _placed(array, lies[path]) for path, array in shapes.items()}
        base.update((path, array) for path, array in own.items() if not path.endswith(parameters.ADAPTER))
        params.append(unflatten(own))
    return models.join_adapted(tuple(model.config for model in sized), tuple(params))


def _weights(sized: Sequence[Sized], params: Sequence[PyTree]) -> dict[str, PyTree]:
    """Returns the parameters of models by name; those of models on one base together."""
    names: dict[Any, list[str]] = {}
    for number, model in enumerate(sized):
        shared = any(model.base_key == each.base_key and each.config.adapters for each in sized)
        key = model.base_key if shared else number
        names.setdefault(key, []).append(model.name)
    told = (f"weights of {' and '.join(dict.fromkeys(each))}" for each in names.values())
    if len(names) != len(params):  # models of one base that do not stand side by side
        return {"weights": tuple(params)}
    numbered = (f"{name} ({n + 1})" if len(params) > 1 else name for n, name in enumerate(told))
    return dict(zip(numbered, params, strict=True))


def _empty(configs, params, rows: int, bucket: int, new_tokens: int) -> DecodeState:
    """Returns the state of empty rows, with a prompt of `bucket` tokens in view."""
    count = sum(config.members for config in configs)
    tokens = (jnp.zeros((1, bucket), jnp.int32),) * count
    masks = (tokens[0] == 0,) * count
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
    prefilled = device_loop.prefill_prompts(configs, zeros, tokens, masks, jnp.zeros((count, 1), jnp.int32))
    slots = (models.whole_blocks(bucket + new_tokens),) * len(configs)
    return empty_state(configs, prefilled, rows, slots, jax.random.key(0), linear_rule)


def _laid(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns shapes with their place: rows over `data`, and heads of caches over `model`."""

    def laid(path: tuple, array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec: list[str | None] = [None] * array.ndim
        rows_axis = int(getattr(path[0], "name", "") in ("token", "position"))
        if array.ndim > rows_axis:
            spec[rows_axis] = "data"
        if array.ndim == 4 and array.shape[1] % mesh.shape["model"] == 0:
            spec[1] = "model"
        return _placed(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree_util.tree_map_with_path(laid, tree)


def _pairs(pairs: int, length: int, completion: int) -> SideBatch:
    def shaped(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((pairs, *shape), dtype)

    both = Batch(
        tokens=shaped(jnp.int32, 2, length),
        mask=shaped(jnp.bool_, 2, length),
        completion_mask=shaped(jnp.bool_, 2, completion),
        starts=shaped(jnp.int32, 2),
    )
    return SideBatch(both, shaped(jnp.float32, 2), shaped(jnp.bool_), shaped(jnp.float32))


def _placed(array: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)


def _whole(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
