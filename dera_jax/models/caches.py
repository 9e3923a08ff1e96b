"""What models keep of the tokens they have read: caches, and the tokens that are not in one yet.

Layers with a window keep its tokens only: slot p of a row lies at place p mod window. Which layers do is told
by shapes: where a window is smaller than `mask`, the layer's keys have as many places as the window.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8


class Codes(NamedTuple):
    """Keys or values in eight bits: codes · scale."""

    codes: Int8[Array, "rows kv_heads slots head_dim"]
    scale: Float[Array, "rows kv_heads slots 1"]


Slots = Float[Array, "rows kv_heads _slots head_dim"] | Codes
"""Keys or values of a layer; layers differ in how many there are."""


class KVCache(NamedTuple):
    """Keys and values of every layer, with room for tokens still to come.

    A left-padded prompt fills the first slots of every row; what follows in a row goes to the slot `index`
    of that row, so slot distances within a row are position distances.

    Example: a bucket of 4 slots holds the prompt "a b" as `[·, ·, a, b]`, mask `[0, 0, 1, 1]`,
    positions 0 and 1 for a and b. The next token has position 2 and goes to slot 4. A layer with a window
    of 2 has two places; the next token goes to place 4 mod 2, where a was.
    """

    keys: tuple[Slots, ...]
    values: tuple[Slots, ...]
    mask: Bool[Array, "rows slots"]
    index: Int[Array, " rows"]


class Recent(NamedTuple):
    """Keys and values of the tokens that are not in the cache yet.

    While a row is decoded its cache is only read: what is new is kept here and enters the caches together
    (`store_recent`). A loop that carried the caches would copy them. What lies behind a row's count is no token of
    it: a row is cut back by a smaller count.
    """

    keys: tuple[Float[Array, "rows kv_heads room head_dim"], ...]
    values: tuple[Float[Array, "rows kv_heads room head_dim"], ...]
    count: Int[Array, "*rows"]
    """Of tokens: of all rows alike, or of each."""

    def places(self, length: int) -> Int[Array, "*rows length"]:
        """Returns the slots that `length` more tokens take."""
        return self.count[..., None] + jnp.arange(length)


class Past(NamedTuple):
    """What one layer keeps of the tokens before: keys and values in the cache, and those not in it yet."""

    keys: Slots
    values: Slots
    recent_keys: Float[Array, "rows kv_heads room head_dim"] | None = None
    recent_values: Float[Array, "rows kv_heads room head_dim"] | None = None

    def then(self, key: Array, value: Array, count: Int[Array, "*rows"] | None) -> "Past":
        """Returns the same with more tokens, those after `count` recent ones; None: they are all there are."""
        if count is None:
            return self._replace(recent_keys=key, recent_values=value)
        put = _put_alike if count.ndim == 0 else _put_by_row
        recent = (self.recent_keys, key), (self.recent_values, value)
        keys, values = (put(slots, new.astype(slots.dtype), count) for slots, new in recent)
        return self._replace(recent_keys=keys, recent_values=values)


def _put_alike(slots: Array, new: Array, start: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(slots, new, start, axis=2)


def _put_by_row(slots: Array, new: Array, start: Int[Array, " rows"]) -> Array:
    """Returns `slots` with `new` from each row's own slot `start` on."""
    length = new.shape[2]
    which = jnp.arange(slots.shape[2]) - start[:, None]
    there = jnp.take_along_axis(new, jnp.clip(which, 0, length - 1)[:, None, :, None], axis=2)
    return jnp.where(((which >= 0) & (which < length))[:, None, :, None], there, slots)


def kept(x: Float[Array, "rows kv_heads slots head_dim"], kind: str) -> Slots:
    """Returns keys or values as a cache of `kind` keeps them.

    In eight bits each token of each head has a scale, its largest value's.
    """
    if kind == "int8":
        exact = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(exact), axis=-1, keepdims=True) / 127
        return Codes(jnp.round(exact / jnp.maximum(scale, 1e-30)).astype(jnp.int8), scale)
    return x if kind == "auto" else x.astype(kind)


def places(slots: Slots) -> int:
    """Returns how many tokens of a row there is room for in a layer."""
    return jax.tree.leaves(slots)[0].shape[2]


def new_cache(present: Sequence[tuple], mask: Array, windows: Sequence[int], kind: str) -> KVCache:
    """Returns the cache of a left-padded prompt, all of whose tokens were read at once.

    Args:
      present: of each layer, the keys and values.
      windows: of each layer, 0 being none; or empty.
      kind: of `configs.KV_CACHES`.
    """
    rows, length = mask.shape
    sizes = _sizes(len(present), windows, length)

    def keep(x, size):
        # The last slots, each at its place.
        return kept(x if size == length else jnp.roll(x[:, :, -size:], length % size, axis=2), kind)

    keys, values = (tuple(map(keep, each, sizes)) for each in zip(*present, strict=True))
    return KVCache(keys, values, mask, jnp.full(rows, length, jnp.int32))


def empty_cache(
    shape: tuple[int, int, int, int], dtype: str, layers: int, windows: Sequence[int], kind: str
) -> KVCache:
    """Returns a cache of so many layers without tokens, with room for `shape`: rows, heads, slots, head_dim."""
    rows, heads, slots, head_dim = shape

    def empty(size):
        return kept(jnp.zeros((rows, heads, size, head_dim), dtype), kind)

    each = tuple(map(empty, _sizes(layers, windows, slots)))
    return KVCache(each, each, jnp.zeros((rows, slots), bool), jnp.zeros(rows, jnp.int32))


def grow_cache(cache: Any, slots: int, windows: Sequence[int]) -> Any:
    """Returns `cache` (a `KVCache`, or one with more fields) with room for `slots` more tokens.

    Args:
      windows: of each layer, 0 being none; or empty.
    """
    return fit_cache(cache, cache.mask.shape[1] + slots, windows)


def fit_cache(cache: Any, slots: int, windows: Sequence[int]) -> Any:
    """Returns `cache` with `slots` slots in all: with more room, or without the last ones, which are free.

    Args:
      windows: of each layer, 0 being none; or empty.
    """
    sizes = _sizes(len(cache.keys), windows, slots)

    def fit(layers):
        return tuple(
            jax.tree.map(lambda a, size=size: fitted(a, (*a.shape[:2], size, a.shape[3])), layer)
            for layer, size in zip(layers, sizes, strict=True)
        )

    mask = fitted(cache.mask, (len(cache.mask), slots))
    return cache._replace(keys=fit(cache.keys), values=fit(cache.values), mask=mask)


def fitted(array: Array, shape: Sequence[int]) -> Array:
    """Returns the first elements of `array` along each axis, and zeros behind them, in `shape`."""
    kept = array[tuple(map(slice, shape))]
    return jnp.pad(kept, [(0, there - here) for here, there in zip(kept.shape, shape, strict=True)])


def without_padding(cache: Any) -> Any:
    """Returns `cache` (a `KVCache`, or one with more fields) with each row's tokens from slot 0 on.

    What a row's next tokens are then read with does not depend on how far its prompt was padded.
    """
    if not cache.mask.shape[1]:
        return cache
    padding = cache.index - cache.mask.sum(axis=1, dtype=cache.index.dtype)

    def turn(a, axis):
        # Of a layer with a window too: slot p lies at place p mod window.
        rows = [jnp.roll(row, -padding[n], axis=axis - 1) for n, row in enumerate(a)]
        return jnp.stack(rows)

    keys, values = (jax.tree.map(lambda a: turn(a, 2), each) for each in (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values, mask=turn(cache.mask, 1), index=cache.index - padding)


def _sizes(layers: int, windows: Sequence[int], slots: int) -> list[int]:
    return [min(window or slots, slots) for window in windows or [0] * layers]


def no_recent(cache: Any, room: int, by_row: bool = False) -> Recent:
    """Returns what `room` tokens after those of `cache` will be kept in; in bfloat16 before eight bits.

    Args:
      by_row: whether rows will have different numbers of them.
    """

    def empty(layer):
        codes = jax.tree.leaves(layer)[0]
        dtype = jnp.bfloat16 if isinstance(layer, Codes) else codes.dtype
        return jnp.zeros((*codes.shape[:2], room, codes.shape[3]), dtype)

    count = jnp.zeros(cache.index.shape if by_row else (), jnp.int32)
    return Recent(tuple(map(empty, cache.keys)), tuple(map(empty, cache.values)), count)


def store_recent(cache: Any, recent: Recent) -> Any:
    """Returns `cache` with all tokens of `recent`, each row's from its own slot `index` on."""
    room, slots = recent.keys[0].shape[2], cache.mask.shape[1]
    by_row = recent.count.ndim > 0
    count = recent.count if by_row else room  # then the room is full

    def write(old, new):
        size = old.shape[2]
        if by_row and size < slots:
            return _put_in_window(old, new, cache.index, recent.count)
        if size == slots:
            return jax.vmap(lambda s, n, i: jax.lax.dynamic_update_slice(s, n, (0, i, 0)))(
                old, new, cache.index
            )
        last = min(room, size)
        where = (cache.index[:, None] + jnp.arange(room - last, room)) % size
        return jax.vmap(lambda s, n, at: s.at[:, at].set(n, unique_indices=True))(
            old, new[:, :, -last:], where
        )

    behind = jnp.arange(slots) - cache.index[:, None]
    return cache._replace(
        keys=_write(write, cache.keys, recent.keys),
        values=_write(write, cache.values, recent.values),
        mask=cache.mask | (behind >= 0) & (behind < jnp.broadcast_to(count, cache.index.shape)[:, None]),
        index=cache.index + count,
    )


def _put_in_window(old: Array, new: Array, index: Int[Array, " rows"], count: Int[Array, " rows"]) -> Array:
    """Returns a layer's window with the first `count` tokens of `new` in each row, from its slot `index` on."""
    which = held_slots(index + count, old.shape[2]) - index[:, None]
    there = jnp.take_along_axis(new, jnp.clip(which, 0, new.shape[2] - 1)[:, None, :, None], axis=2)
    return jnp.where((which >= 0)[:, None, :, None], there, old)


def held_slots(index: Int[Array, " rows"], window: int) -> Int[Array, "rows window"]:
    """Returns which slot of a row each place of a window holds, the next one being `index`; below 0: none."""
    last = index[:, None] - 1
    return last - (last - jnp.arange(window)) % window


def store_piece(cache: KVCache, present: Sequence[tuple], mask: Bool[Array, "rows length"]) -> KVCache:
    """Returns `cache` with more tokens of a prompt, whose rows all have come as far."""
    length, slots = mask.shape[1], cache.mask.shape[1]
    start = cache.index[0]

    def write(old, new):
        size = old.shape[2]
        if size == slots:
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
        last = min(length, size)
        first = start + length - last
        # Turned so that the tokens lie side by side: on a TPU a scatter takes them one by one.
        turned = jnp.roll(old, -first, axis=2).at[:, :, :last].set(new[:, :, -last:])
        return jnp.roll(turned, first, axis=2)

    keys, values = zip(*present, strict=True)
    return KVCache(
        _write(write, cache.keys, keys),
        _write(write, cache.values, values),
        jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, start, axis=1),
        cache.index + length,
    )


def _write(write, layers: Sequence[Slots], new: Sequence[Array]) -> tuple[Slots, ...]:
    """Returns layers after `write(old, new)` of each array, the new ones as the old ones are kept."""
    return tuple(
        jax.tree.map(write, old, kept(x, "int8" if isinstance(old, Codes) else old.dtype.name))
        for old, x in zip(layers, new, strict=True)
    )


def drop_first(cache: KVCache, count: int, windows: Sequence[int]) -> KVCache:
    """Returns `cache` without the first `count` slots, which hold no tokens."""
    if not count:
        return cache
    sizes = _sizes(len(cache.keys), windows, cache.mask.shape[1] - count)

    def drop(layers):
        return tuple(
            jax.tree.map(lambda a, size=size: jnp.roll(a, -count, axis=2)[:, :, :size], layer)
            for layer, size in zip(layers, sizes, strict=True)
        )

    return KVCache(drop(cache.keys), drop(cache.values), cache.mask[:, count:], cache.index - count)


def visible(cache: Any, own: Int[Array, "#rows length"], window: int) -> Bool[Array, "rows #length slots"]:
    """Returns which places of a layer's keys hold tokens that those at the slots `own` see.

    Args:
      own: slots not before `index`.
      window: of the layer; 0 is none.
    """
    if not window or window >= cache.mask.shape[1]:
        return cache.mask[:, None]
    index = cache.index[:, None]
    held = held_slots(cache.index, window)
    # Padding is on the left: the tokens are the last slots.
    real = held >= index - cache.mask.sum(axis=1, keepdims=True)
    return real[:, None] & (held[:, None] > own[..., None] - window)
