"""Does it fit, how fast, and what would be enough: answered by the compiler, from configurations alone."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jax.sharding import AbstractMesh

from dera_jax import models
from dera_jax.common.checks import check_choice, check_count
from dera_jax.decoding.sampling import Sampling
from dera_jax.devices import placement
from dera_jax.devices.mesh import MESH_AXES
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.trees import flatten
from dera_jax.performance.plan.chips import Slice, slices
from dera_jax.performance.plan.programs import (
    Compiled,
    Job,
    compile_job,
    decode_job,
    device_bytes,
    dpo_job,
    prefill_job,
    tpu_mesh,
)
from dera_jax.policies.sizes import Sized

Told = Callable[[str], None]
"""Told what is being compiled."""
TRIES = 3
"""Compilations, at most, that the largest number of rows is verified by."""
MOST_ROWS = 1024
"""Of a device: more are not tried."""


@dataclass(frozen=True)
class Question:
    """What is to run, and where."""

    sized: tuple[Sized, ...]
    """The models, the reference first; to be trained, the policy alone."""
    slice_: Slice
    mesh: tuple[int, int] | None = None
    """Sizes of data and model; None: chosen by `default_mesh`."""
    rows: int = 16
    """Completions at a time; of training, pairs in a batch."""
    context: int = 2048
    """Tokens of prompt and completion."""
    new_tokens: int = 128
    """Of them, those of the completion."""
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    train: str | None = None
    """dpo; None is decoding."""
    accumulation: int = 1
    """Parts of a training batch, one after the other."""

    def __post_init__(self):
        for name in ("rows", "context", "new_tokens", "accumulation"):
            check_count(name, getattr(self, name))
        if self.train is not None:
            check_choice("train", self.train, ("dpo",))
        if self.new_tokens >= self.context:
            raise ValueError(
                f"context: expected more than the {self.new_tokens} new tokens, found {self.context}"
            )
        if self.rows % self.accumulation:
            raise ValueError(
                f"gradient_accumulation_steps: expected a divisor of {self.rows} rows, got {self.accumulation}"
            )
        for model in self.sized:
            if not isinstance(model.config, DecoderConfig):
                raise ValueError(f"{model.name}: expected a decoder-only model")
        data, parts = self.shape
        if self.rows % (data * self.accumulation):
            raise ValueError(
                f"mesh data:{data},model:{parts}: expected rows that {data * self.accumulation} divides, "
                f"found {self.rows}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes of the mesh's axes data and model."""
        return self.mesh or default_mesh([model.config for model in self.sized], self.slice_.devices)


@dataclass(frozen=True)
class Measured:
    """One program: what it takes on a device, per step, and what it could take at least."""

    name: str
    moved: float
    """Bytes from and to HBM."""
    least_moved: float
    """Weights and caches once; of training, what is trained and its moments, read and written."""
    flops: float
    least_flops: float
    seconds: float
    """The longer of bytes over bandwidth and operations over peak."""
    tokens: int
    """Of a step, over all devices."""
    collectives: list[dict]
    """Each with `count` in a step, its `bytes` and what a device `sent` each time."""
    in_loop: float | None = None
    """Bytes of one decoding step within the chunk, its merge into the caches apart."""
    unknown_loops: tuple[str, ...] = ()
    """Loops counted once, since the text does not tell how often they run."""


@dataclass(frozen=True)
class Plan:
    """What was found."""

    question: Question
    memory: dict[str, int]
    """Bytes of a device, item by item."""
    programs: list[Measured]
    most_rows: int | None = None
    """That fit, at most `MOST_ROWS` a device; verified by compiling. None: not looked for."""
    smallest: Slice | None = None
    """Of the same generation, that would do; verified by compiling."""
    notes: tuple[str, ...] = ()
    """What a reader may not expect of the mesh."""

    @property
    def total(self) -> int:
        """Bytes of a device, at most at a time."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether they fit."""
        return self.total <= self.question.slice_.hbm


def default_mesh(configs: Sequence[models.ModelConfig], devices: int) -> tuple[int, int]:
    """Returns sizes of data and model: parameters over as many devices as divide every model's heads."""
    heads = math.gcd(*(getattr(config, "num_kv_heads", config.num_heads) for config in configs))
    parts = math.gcd(heads, devices)
    return devices // parts, parts


def plan(question: Question, search: bool = True, told: Told = lambda _: None) -> Plan:
    """Returns the answers, after one compilation for each program.

    Args:
      search: for the largest number of rows and the smallest slice: a few compilations more.

    Raises:
      ValueError: a mesh, rows or context that cannot be, or no libtpu.
    """
    wanted = jobs(question)
    compiled = []
    for job in wanted:
        told(f"compiling {job.name} for {question.slice_.name}")
        compiled.append(compile_job(job))
    memory = memory_of(question, compiled)
    programs = [measure(question, each) for each in compiled if each.cost]
    found = Plan(question, memory, programs, notes=_notes(question))
    if not search:
        return found
    return replace(
        found, most_rows=_most_rows(question, compiled, told), smallest=_smallest(question, compiled, told)
    )


def _notes(question: Question) -> tuple[str, ...]:
    mesh = AbstractMesh(question.shape, MESH_AXES)
    lines = (placement.undivided_vocabulary(mesh, each.name, each.config) for each in question.sized)
    return tuple(dict.fromkeys(filter(None, lines)))


def jobs(question: Question) -> list[Job]:
    """Returns the programs of a run; the last is the one that is run again and again."""
    mesh = tpu_mesh(question.slice_, question.shape)
    if question.train:
        (model,) = question.sized
        completion, parts = question.new_tokens, question.accumulation
        return [dpo_job(model.config, mesh, question.rows, question.context, completion, parts)]
    sampling = Sampling.create(question.temperature, question.top_k, question.top_p, question.shape[1])
    return [
        prefill_job(question.sized, mesh, question.context - question.new_tokens),
        decode_job(question.sized, mesh, question.rows, question.context, question.new_tokens, sampling),
    ]


def memory_of(question: Question, compiled: Sequence[Compiled]) -> dict[str, int]:
    """Returns the bytes of a device, item by item."""
    last = compiled[-1]
    items = dict(last.arguments)
    if "caches" in items:
        items["one prompt's caches"] = _prompt_bytes(question, items["caches"])
    padding = last.padding
    items["padding and small arguments"] = padding
    items["temporaries"] = max(each.temporary for each in compiled)
    items["programs"] = sum(each.code for each in compiled)
    return items


def measure(question: Question, compiled: Compiled) -> Measured:
    """Returns what a step of a compiled program takes."""
    cost = compiled.cost * (1 / compiled.steps)
    counted: Counter[tuple] = Counter()
    for each in cost.collectives:
        counted[each.kind, tuple(map(str, each.shapes)), each.group, each.nbytes, each.sent] += each.count
    tokens = {
        "decode": question.rows,
        "prefill": question.shape[0] * (question.context - question.new_tokens),
        "dpo": 2 * question.rows * question.context,
    }[compiled.name]
    return Measured(
        name=compiled.name,
        moved=cost.moved,
        least_moved=_least_moved(question, compiled),
        flops=cost.flops,
        least_flops=_least_flops(question, compiled.name),
        seconds=question.slice_.seconds(cost.moved, cost.flops),
        tokens=tokens,
        collectives=[
            {
                "kind": kind,
                "shapes": list(shapes),
                "devices": group,
                "bytes": size,
                "sent": sent,
                "count": count,
            }
            for (kind, shapes, group, size, sent), count in counted.most_common()
        ],
        in_loop=compiled.loop.body.moved if compiled.loop and compiled.name == "decode" else None,
        unknown_loops=cost.unknown,
    )


def _prompt_bytes(question: Question, caches: int) -> int:
    data, _ = question.shape
    bucket = question.context - question.new_tokens
    return caches * data * bucket // (question.rows * question.context)


def _least_moved(question: Question, compiled: Compiled) -> float:
    held = compiled.arguments
    if question.train:
        return 2.0 * sum(held.values())
    if compiled.name == "decode":
        return float(sum(held.values()))
    return float(sum(held.values()) + _cache_bytes(question))


def _cache_bytes(question: Question) -> float:
    """Returns the bytes of one prompt's keys and values on a device."""
    bucket, (_, parts) = question.context - question.new_tokens, question.shape
    total = 0.0
    for model in question.sized:
        config = model.config
        split = parts if config.num_kv_heads % parts == 0 else 1
        total += 2 * config.num_layers * config.num_kv_heads * bucket * _kept_bytes(config) / split
    return total


def _kept_bytes(config: DecoderConfig) -> int:
    """Returns the bytes of one head's key of one token."""
    if config.kv_cache == "int8":
        return config.head_dim + 4  # with its scale
    dtype = config.dtype if config.kv_cache == "auto" else config.kv_cache
    return config.head_dim * (4 if dtype == "float32" else 2)


def _least_flops(question: Question, name: str) -> float:
    """Returns the operations of the matrix products that cannot be left out, of a device."""
    bucket, length = question.context - question.new_tokens, question.context
    total = 0.0
    for model in question.sized:
        config = model.config
        sizes = {path: math.prod(a.shape) for path, a in flatten(models.param_shapes(config)).items()}
        head = sizes.pop("head.kernel", sizes["embed.embedding"])
        maps = {path: n for path, n in sizes.items() if path.endswith((".kernel", "lora_a", "lora_b"))}
        body, pair = sum(maps.values()), 4.0 * config.num_heads * config.head_dim  # of a query and a key
        if name == "decode":
            total += question.rows * (2.0 * (body + head) + pair * config.num_layers * length)
        elif name == "prefill":  # of the last layer, keys and values are all that is kept
            last = f"blocks.{config.num_layers - 1}."
            left_out = sum(n for path, n in maps.items() if path.startswith(last) and not _is_kept(path))
            prompt = 2.0 * (body - left_out) * bucket + pair * (config.num_layers - 1) * bucket**2 / 2
            total += question.shape[0] * prompt
        else:  # two completions of a pair; the gradients of a product are two more
            forward = 2.0 * (body * length + head * question.new_tokens)
            total += 3 * 2 * question.rows * (forward + pair * config.num_layers * length**2 / 2)
    return total / question.slice_.devices


def _is_kept(path: str) -> bool:
    return ".key." in path or ".value." in path


def _most_rows(question: Question, compiled: Sequence[Compiled], told: Told) -> int:
    """Returns the largest number of rows that fits: by arithmetic from what is known, then by compiling."""
    step = question.shape[0] * question.accumulation
    known, rows, largest = memory_of(question, compiled), question.rows, 0
    for _ in range(TRIES):
        growing = sum(known.get(name, 0) for name in ("caches", "temporaries", "pairs"))
        room = question.slice_.hbm - (sum(known.values()) - growing)
        guess = min(int(room / (growing / rows)), MOST_ROWS * question.shape[0]) // step * step
        if guess <= 0:
            return largest
        if guess == rows and sum(known.values()) <= question.slice_.hbm:
            return rows
        told(f"compiling for {guess} rows")
        asked = replace(question, rows=guess)
        again = [*compiled[:-1], compile_job(jobs(asked)[-1])]
        known, rows = memory_of(asked, again), guess
        if sum(known.values()) <= question.slice_.hbm:
            return guess
    return largest


def _smallest(question: Question, compiled: Sequence[Compiled], told: Told) -> Slice | None:
    """Returns the smallest slice of the generation on which it fits."""
    known = memory_of(question, compiled)
    temporary = known["temporaries"] * question.slice_.devices
    for slice_ in slices(question.slice_.chip):
        try:
            asked = replace(
                question, slice_=slice_, mesh=None if slice_ != question.slice_ else question.mesh
            )
        except ValueError:  # its mesh does not divide the rows
            continue
        if slice_ == question.slice_:
            if sum(known.values()) <= slice_.hbm:
                return slice_
            continue
        job = jobs(asked)[-1]
        held = sum(map(device_bytes, job.arguments.values()))
        if held + temporary / slice_.devices + known["programs"] > slice_.hbm:
            continue
        told(f"compiling for {slice_.name}")
        found = compile_job(job)
        if sum(memory_of(asked, [*compiled[:-1], found]).values()) <= slice_.hbm:
            return slice_
    return None
