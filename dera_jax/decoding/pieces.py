"""Prompts that are read piece by piece, each piece behind what is in the caches already."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from dera_jax import models
from dera_jax.data.buckets import padded_length
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding.prefix_cache import Tokens
from dera_jax.decoding.room import room_for
from dera_jax.decoding.state import Prefilled, by_stream
from dera_jax.devices import placement

PIECE = 512
"""Tokens that are read at a time, at most."""


def contexts(prompt: EncodedPrompt) -> Tokens:
    """Returns what each model has in its cache before the first step."""
    return tuple(np.array(context, np.int32) for context, _ in prompt.parts)


def as_prefilled(prompt: EncodedPrompt, caches: tuple) -> Prefilled:
    """Returns a prompt with its caches, ready to be continued."""
    last = np.array([[token] for _, token in prompt.parts], np.int32)
    position = np.array([[len(context)] for context, _ in prompt.parts], np.int32)
    return Prefilled(caches, last, position)


def pieces(length: int) -> list[int]:
    """Returns how many tokens are read at a time, the last ones filled up to a bucket.

    >>> pieces(0), pieces(20), pieces(1100)
    ([], [24], [512, 512, 96])
    """
    whole, rest = divmod(length, PIECE)
    return [PIECE] * whole + ([padded_length(rest)] if rest else [])


def rooms_of(configs: Sequence[models.ModelConfig], lengths: Sequence[int]) -> tuple[int, ...]:
    """Returns the slots of caches that hold so many tokens of each model."""
    return tuple(room_for(max(each)) for each in by_stream(lengths, [config.members for config in configs]))


def read_on(
    configs: tuple[models.ModelConfig, ...],
    params: tuple[PyTree, ...],
    caches: tuple,
    row: int,
    common: Sequence[int],
    tokens: Tokens,
    mesh: Mesh | None = None,
) -> Iterator[tuple | None]:
    """Yields None behind every piece that is read but the last, and at the end the caches of `tokens`.

    Args:
      caches: that have the first `common` tokens of each model in `row`.
    """
    counts = [config.members for config in configs]
    rests = by_stream([ids[count:] for ids, count in zip(tokens, common, strict=True)], counts)
    sizes = [pieces(max(map(len, each))) for each in rests]
    most = [max(each) for each in by_stream(common, counts)]
    # With room for what fills the last piece, too.
    rooms = tuple(room_for(own + sum(each)) for own, each in zip(most, sizes, strict=True))
    found = list(cut(configs, caches, row, common, rooms, mesh))
    for number in range(max(map(len, sizes), default=0)):
        if number:
            yield None
        for model, each in enumerate(sizes):
            if number < len(each):
                piece = [rest[sum(each[:number]) :][: each[number]] for rest in rests[model]]
                given = configs[model], params[model], found[model]
                found[model] = _done(read_piece(*given, *_padded(piece, each[number]), mesh=mesh), mesh)
    lengths = list(map(len, tokens))
    needed = rooms_of(configs, lengths)
    yield tuple(found) if rooms == needed else cut(configs, tuple(found), 0, lengths, needed, mesh)


def _padded(piece: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each member's tokens, filled up to `size`, and how many they are."""
    tokens = np.zeros((len(piece), size), np.int32)
    for member, ids in enumerate(piece):
        tokens[member, : len(ids)] = ids
    return tokens, np.array(list(map(len, piece)), np.int32)


def cut(
    configs: tuple[models.ModelConfig, ...],
    caches: tuple,
    row: int,
    taken: Sequence[int],
    rooms: tuple[int, ...],
    mesh: Mesh | None = None,
) -> tuple:
    """Returns the caches of one row, cut back to its first `taken` tokens, with so many slots."""
    return _done(cut_row(configs, caches, np.int32(row), np.array(taken, np.int32), rooms, mesh=mesh), mesh)


def _done(tree: PyTree, mesh: Mesh | None) -> PyTree:
    if mesh:  # on a processor, two computations under way may wait for each other's devices
        jax.block_until_ready(tree)
    return tree


# Static: configs, rooms, mesh. Traced: the row and how much of it. One compilation per size of both caches.
@partial(jax.jit, static_argnames=("configs", "rooms", "mesh"))
def cut_row(
    configs: tuple[models.ModelConfig, ...],
    caches: tuple,
    row: Int[Array, ""] | np.int32,
    taken: Int[Array, " models"] | Int[np.ndarray, " models"],
    rooms: tuple[int, ...],
    mesh: Mesh | None = None,
) -> tuple:
    """Returns the caches of one row, cut back to its first `taken` tokens, with so many slots."""
    each = by_stream(taken, [config.members for config in configs])

    def cut_one(config, cache, taken, room):
        own = jax.tree.map(lambda a: _own_rows(a, row, config.members, mesh), cache)
        own = models.fit_cache(own, room, config.windows)
        inside: Bool[Array, "members slots"] = jnp.arange(room) < taken[:, None]
        return own._replace(mask=own.mask & inside, index=taken)

    return placement.constrain_rows(tuple(map(cut_one, configs, caches, each, rooms)), mesh)


# A function of its own, for the arrays of all layers: each shape is traced but once.
@partial(jax.jit, static_argnames=("members", "mesh"))
def _own_rows(
    values: Shaped[Array, "members_rows ..."], row: Int[Array, ""], members: int, mesh: Mesh | None
) -> Shaped[Array, "members ..."]:
    """Returns the members of one row; on a mesh from the device that has it."""
    parts = mesh.shape["data"] if mesh else 1
    if parts == 1 or len(values) == members:
        return jax.lax.dynamic_slice_in_dim(values, row * members, members)

    def own(first, part, row):
        place = row * members - first
        here = (place >= 0) & (place < len(part))
        found = jax.lax.dynamic_slice_in_dim(part, place, members)
        return jnp.where(here, found, jnp.zeros_like(found))

    found = placement.by_rows(own, mesh)(values, row).reshape(parts, members, *values.shape[1:])
    return found.any(axis=0) if found.dtype == bool else found.sum(axis=0, dtype=found.dtype)


# Static: config, mesh. Traced: everything else. One compilation per room and size of a piece, for models alike.
@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="cache")
def read_piece(
    config: models.ModelConfig,
    params: PyTree,
    cache: models.KVCache,
    tokens: Int[Array, "members length"] | Int[np.ndarray, "members length"],
    count: Int[Array, " members"] | Int[np.ndarray, " members"],
    mesh: Mesh | None = None,
) -> models.KVCache:
    """Returns the cache with the first `count` of more tokens, each member's own."""
    recent = models.no_recent(cache, tokens.shape[1], by_row=True)
    positions = cache.index[:, None] + jnp.arange(tokens.shape[1])
    # Nobody reads the logits: the compiler leaves out the head.
    _, recent = models.bind(config, params).steps(tokens, positions, cache, recent)
    return placement.constrain_rows(models.store_recent(cache, recent._replace(count=count)), mesh)
