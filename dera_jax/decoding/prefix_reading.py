"""Prompts that go on from caches of a prefix cache: only what is new in them is read."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from dera_jax import models
from dera_jax.data.buckets import padded_length
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding.branches import can_be_cut
from dera_jax.decoding.prefix_cache import Entry, Owner, PrefixCache, Tokens
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import room_for
from dera_jax.decoding.state import Prefilled, by_stream
from dera_jax.devices import placement
from dera_jax.devices.usage import Usage

PIECE = 512
"""New tokens that are read at a time, at most."""
LEAST = models.BLOCK
"""Tokens that a prompt must have from caches, at least, in each model."""


class PrefixReader:
    """The side of a prefix cache that belongs to one batch: its models, and what there is room for."""

    def __init__(
        self,
        store: PrefixCache,
        configs: tuple[models.ModelConfig, ...],
        params: tuple[PyTree, ...],
        mesh: Mesh | None,
        usage: Usage,
    ):
        """Reads and keeps nothing yet.

        Args:
          usage: is added to.
        """
        self.store, self.configs, self.params, self.mesh, self.usage = store, configs, params, mesh, usage
        self.owner = Owner(configs, params)
        self.counts = [config.members for config in configs]
        self.encoded = any(config.encoder_decoder for config in configs)
        """Whether an encoder reads prompts: it reads each as a whole."""
        self.limit = 0.0
        """Slots that all entries may take."""

    def fit(self, rows: int, slots: Sequence[int]) -> None:
        """Notes how large the batch's caches may become.

        Args:
          rows: on each device.
          slots: of each cache.
        """
        self.limit = self.store.most * rows * self._slots(slots)

    def has(self, prompt: EncodedPrompt) -> bool:
        """Whether a prompt would go on from caches."""
        return self._find(prompt) is not None

    def known_first(self, requests: Sequence[Request]) -> list[Request]:
        """Returns requests, those first whose prompts would go on from caches, while these are there."""
        known: dict[tuple, bool] = {}
        for request in requests if self.store.entries else ():
            if request.prompt.tokens not in known:
                known[request.prompt.tokens] = self.has(request.prompt)
        return sorted(requests, key=lambda request: not known.get(request.prompt.tokens, False))

    def prefill(self, prompt: EncodedPrompt) -> Prefilled | None:
        """Returns a prompt, ready to be continued, what is new in it read; None: no entry is worth it."""
        found = self._find(prompt)
        if found is None:
            return None
        entry, common = found
        self.store.use(entry, common)
        tokens = _contexts(prompt)
        caches = self._read(entry, common, tokens)
        prefilled = _prefilled(prompt, caches)
        self._add(tokens, prefilled, 0)
        self._count(sum(map(len, tokens)) - sum(common), sum(common))
        return prefilled

    def keep_prompts(self, prompts: Sequence[EncodedPrompt], prefilled: Prefilled) -> None:
        """Keeps prompts that were read as a whole."""
        for row, prompt in enumerate(prompts):
            tokens = _contexts(prompt)
            self._count(sum(map(len, tokens)), 0)
            self._add(tokens, prefilled, row)

    def keep_row(
        self, caches: tuple, row: int, prompt: EncodedPrompt, drawn: Sequence[int], count: int
    ) -> None:
        """Keeps a row of a batch that has ended, if it answers a chat.

        Args:
          caches: of the batch.
          drawn: all tokens that the row has drawn; the last one is not in the caches.
          count: of those that are kept, the first ones.
        """
        if self.encoded or not self.store.answers or prompt.prompt.messages is None:
            return
        read = drawn[: min(count, len(drawn) - 1)]
        there = [len(ids) + len(drawn) - 1 for ids in prompt.tokens]
        if len(read) < len(drawn) - 1 and not self._can_be_cut(there):
            return
        tokens = tuple(np.array([*ids, *read], np.int32) for ids in prompt.tokens)
        lengths = list(map(len, tokens))
        if min(lengths) >= LEAST:
            found = self._cut(caches, row, lengths, self._rooms(lengths))
            self._add(tokens, _prefilled(prompt, found), 0)

    def _find(self, prompt: EncodedPrompt) -> tuple[Entry, list[int]] | None:
        """Returns the entry that a prompt goes on from, and with how many tokens of each model, if it is worth it."""
        if self.encoded:
            return None
        tokens = _contexts(prompt)
        found = self.store.find(self.owner, tokens)
        worth = found and min(found[1]) >= LEAST and 2 * sum(found[1]) >= sum(map(len, tokens))
        return found if worth else None

    def _read(self, entry: Entry, common: Sequence[int], tokens: Tokens) -> tuple:
        """Returns the caches of `tokens`, the first `common` of which are the entry's."""
        rests = [ids[count:] for ids, count in zip(tokens, common, strict=True)]
        sizes = [_pieces(max(map(len, each))) for each in by_stream(rests, self.counts)]
        most = [max(each) for each in by_stream(common, self.counts)]
        # With room for what fills the last piece, too.
        rooms = tuple(room_for(own + sum(pieces)) for own, pieces in zip(most, sizes, strict=True))
        caches = self._cut(entry.prefilled.caches, entry.row, common, rooms)
        read = zip(self.configs, self.params, caches, by_stream(rests, self.counts), sizes, strict=True)
        caches = tuple(self._read_pieces(*each) for each in read)
        lengths = list(map(len, tokens))
        needed = self._rooms(lengths)
        return caches if rooms == needed else self._cut(caches, 0, lengths, needed)

    def _read_pieces(self, config, params, cache, rests: Sequence[np.ndarray], sizes: Sequence[int]):
        """Returns the cache of one model with the rest of its tokens, or of its members' tokens."""
        start = 0
        for size in sizes:
            tokens = np.zeros((len(rests), size), np.int32)
            count = np.zeros(len(rests), np.int32)
            for member, rest in enumerate(rests):
                piece = rest[start : start + size]
                count[member], tokens[member, : len(piece)] = len(piece), piece
            cache = self._done(read_piece(config, params, cache, tokens, count, mesh=self.mesh))
            start += size
        return cache

    def _cut(self, caches: tuple, row: int, taken: Sequence[int], rooms: tuple[int, ...]) -> tuple:
        return self._done(
            cut_row(self.configs, caches, np.int32(row), np.array(taken, np.int32), rooms, mesh=self.mesh)
        )

    def _done(self, tree):
        if self.mesh:  # on a processor, two computations under way may wait for each other's devices
            jax.block_until_ready(tree)
        return tree

    def _add(self, tokens: Tokens, prefilled: Prefilled, row: int) -> None:
        lengths = list(map(len, tokens))
        if self.encoded or min(lengths) < LEAST:
            return
        slots = self._slots([cache.mask.shape[1] for cache in prefilled.caches])
        entry = Entry(self.owner, tokens, prefilled, row, slots, self._can_be_cut(lengths))
        self.store.add(entry, self.limit)

    def _can_be_cut(self, lengths: Sequence[int]) -> bool:
        return can_be_cut(self.configs, [max(each) for each in by_stream(lengths, self.counts)])

    def _rooms(self, lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(room_for(max(each)) for each in by_stream(lengths, self.counts))

    def _slots(self, rooms: Sequence[int]) -> int:
        return sum(room * count for room, count in zip(rooms, self.counts, strict=True))

    def _count(self, read: int, cached: int) -> None:
        self.usage.prompt_tokens_read += read
        self.usage.prompt_tokens_cached += cached


def _contexts(prompt: EncodedPrompt) -> Tokens:
    """Returns what each model has in its cache before the first step."""
    return tuple(np.array(context, np.int32) for context, _ in prompt.parts)


def _prefilled(prompt: EncodedPrompt, caches: tuple) -> Prefilled:
    last = np.array([[token] for _, token in prompt.parts], np.int32)
    position = np.array([[len(context)] for context, _ in prompt.parts], np.int32)
    return Prefilled(caches, last, position)


def _pieces(length: int) -> list[int]:
    """Returns how many tokens are read at a time, the last ones filled up to a bucket.

    >>> _pieces(0), _pieces(20), _pieces(1100)
    ([], [24], [512, 512, 96])
    """
    whole, rest = divmod(length, PIECE)
    return [PIECE] * whole + ([padded_length(rest)] if rest else [])


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

    def cut(config, cache, taken, room):
        own = jax.tree.map(lambda a: _own_rows(a, row, config.members, mesh), cache)
        own = models.fit_cache(own, room, config.windows)
        inside: Bool[Array, "members slots"] = jnp.arange(room) < taken[:, None]
        return own._replace(mask=own.mask & inside, index=taken)

    return placement.constrain_rows(tuple(map(cut, configs, caches, each, rooms)), mesh)


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
