"""Attention: of a few queries to caches, and of all tokens of a text to those before them."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dera_jax.models.caches import Codes, Slots, places
from dera_jax.models.layers import softcapped
from dera_jax.models.linear import PRECISION

MASKED = -1e30
"""Score of a position that may not be attended to. Finite: a row with no real position stays free of NaN."""
CAUSAL_BLOCKS = 3
"""Of queries, where all tokens are read at once: two thirds of the work are left."""
BLOCK = 64
"""Slots of a cache that one query reads at a time. What lies behind a row's last block adds exactly 0, so its
figures do not depend on how much room there is: sums over all slots at once would round otherwise."""
Blocks = Float[Array, "rows kv_heads blocks _slots head_dim"] | Codes
"""Keys or values of `BLOCK` slots each."""


class Span(NamedTuple):
    """Keys and values that queries attend to."""

    key: Slots
    value: Slots
    mask: Bool[Array, "#rows #length slots"]
    bias: Float[Array, "*rows heads length slots"] | None = None
    """Of every score, where positions are told that way."""


def attend(
    query: Float[Array, "rows heads length head_dim"],
    spans: Sequence[Span],
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns softmax(q·k·scale + bias) v over all spans, a key-value head serving heads/kv_heads query heads.

    Scores and softmax are in float32. One query of a row reads spans in blocks (see `BLOCK`).

    Args:
      softcap: if not 0, scores are bounded by c · tanh(score/c).
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = jax.tree.leaves(spans[0].key)[0].shape[1]
    if length == 1:
        return _attend_blocks(query, spans, scale, softcap)
    grouped = query.reshape(rows, kv_heads, -1, length, head_dim)
    scores = jnp.concatenate([_scores(grouped, span, scale, softcap) for span in spans], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    ends = np.cumsum([places(span.key) for span in spans[:-1]])
    parts = zip(jnp.split(weights, ends, axis=-1), spans, strict=True)
    mixed = sum(_mixed(part, span.value, query.dtype) for part, span in parts)
    return mixed.reshape(rows, heads, length, head_dim)


def _attend_blocks(query, spans: Sequence[Span], scale: float, softcap: float):
    """Returns what `attend` does for one query of each row."""
    rows, _, _, head_dim = query.shape
    kv_heads = jax.tree.leaves(spans[0].key)[0].shape[1]
    grouped = query.reshape(rows, kv_heads, -1, head_dim)
    blocks = [block for span in spans for block in _blocks(span)]
    scores = [_block_scores(grouped, block, scale, softcap) for block in blocks]
    largest = reduce(jnp.maximum, (each.max(axis=(2, 4), keepdims=True) for each in scores))
    total: Array | float = 0.0
    mixed: Array | float = 0.0
    for score, block in zip(scores, blocks, strict=True):
        weights = jnp.exp(score - largest)
        total += _sum_blocks(_sum_slots(weights))
        mixed += _sum_blocks(_block_mixed(weights, block.value, query.dtype))
    return (mixed / total[..., None]).astype(query.dtype).reshape(query.shape)


def _sum_slots(weights: Float[Array, "*rest slots"]) -> Float[Array, "*rest"]:
    """Returns the sum over the slots of each block, by halves: how a compiler sums depends on how much it is."""
    while weights.shape[-1] % 2 == 0:
        one, other = jnp.split(weights, 2, axis=-1)
        weights = one + other
    # Not to be made one sum with that over blocks.
    return jax.lax.optimization_barrier(weights.sum(axis=-1))


def _sum_blocks(each: Float[Array, "rows kv_heads blocks *rest"]) -> Float[Array, "rows kv_heads *rest"]:
    """Returns the sum over blocks, always in the same order: compilers turn long sums into trees."""
    parts = (each[:, :, start : start + 16] for start in range(0, each.shape[2], 16))
    return reduce(jnp.add, (part.sum(axis=2) for part in parts))


def _blocks(span: Span) -> list[Span]:
    """Returns a span in blocks, and the slots that fill none: slots become [blocks, slots of one]."""
    slots = places(span.key)
    whole = slots - slots % BLOCK
    return [_cut(span, start, stop) for start, stop in ((0, whole), (whole, slots)) if start < stop]


def _cut(span: Span, start: int, stop: int) -> Span:
    size = min(BLOCK, stop - start)

    def cut(a, axis):
        part = jax.lax.slice_in_dim(a, start, stop, axis=axis)
        return part.reshape(*a.shape[:axis], (stop - start) // size, size, *a.shape[axis + 1 :])

    key, value = (jax.tree.map(lambda a: cut(a, 2), each) for each in (span.key, span.value))
    bias = None if span.bias is None else cut(span.bias, span.bias.ndim - 1)
    return Span(key, value, cut(span.mask, 2), bias)


def _block_scores(
    grouped: Float[Array, "rows kv_heads group head_dim"], block: Span, scale: float, softcap: float
) -> Float[Array, "rows kv_heads blocks group slots"]:
    key, slot_scale = _factors(block.key, grouped.dtype)
    scores = jnp.einsum(
        "rkgd,rknsd->rkngs",
        grouped.astype(key.dtype), key, precision=PRECISION, preferred_element_type=jnp.float32
    )  # fmt: skip
    if slot_scale is not None:
        scores *= slot_scale[..., None, :]
    scores = softcapped(scores * scale, softcap)
    if block.bias is not None:
        *rows, _, _, count, size = block.bias.shape
        bias = block.bias.reshape(*rows, *grouped.shape[1:3], count, size)
        scores += jnp.swapaxes(bias, -3, -2)
    return jnp.where(block.mask[:, :, :, None], scores, MASKED)


def _block_mixed(
    weights: Float[Array, "rows kv_heads blocks group slots"], value: Blocks, dtype: jnp.dtype
) -> Float[Array, "rows kv_heads blocks group head_dim"]:
    value, slot_scale = _factors(value, dtype)
    if slot_scale is not None:
        weights *= slot_scale[..., None, :]
    return jnp.einsum(
        "rkngs,rknsd->rkngd",
        weights.astype(value.dtype), value, precision=PRECISION, preferred_element_type=jnp.float32
    )  # fmt: skip


def _scores(
    grouped: Float[Array, "rows kv_heads group length head_dim"], span: Span, scale: float, softcap: float
) -> Float[Array, "rows kv_heads group length slots"]:
    key, slot_scale = _factors(span.key, grouped.dtype)
    # In the type of the keys: no others are made of a whole cache.
    scores = jnp.einsum(
        "rkgld,rksd->rkgls",
        grouped.astype(key.dtype), key, precision=PRECISION, preferred_element_type=jnp.float32
    )  # fmt: skip
    if slot_scale is not None:
        scores *= slot_scale[:, :, None, None]
    scores = softcapped(scores * scale, softcap)
    if span.bias is not None:
        *rows, _, length, slots = span.bias.shape
        scores += span.bias.reshape(*rows, *grouped.shape[1:3], length, slots)
    return jnp.where(span.mask[:, None, None], scores, MASKED)


def _mixed(
    weights: Float[Array, "rows kv_heads group length slots"], value: Slots, dtype: jnp.dtype
) -> Float[Array, "rows kv_heads group length head_dim"]:
    value, slot_scale = _factors(value, dtype)
    if slot_scale is not None:
        weights *= slot_scale[:, :, None, None]
    weights = weights.astype(value.dtype)
    return jnp.einsum("rkgls,rksd->rkgld", weights, value, precision=PRECISION, preferred_element_type=dtype)


def _factors(slots: Slots | Blocks, dtype: jnp.dtype) -> tuple[Array, Array | None]:
    """Returns what of keys or values goes into a product, and the factors of each slot, for scores."""
    if not isinstance(slots, Codes):
        return slots, None
    return slots.codes.astype(dtype), slots.scale[..., 0]


def attend_causal(
    query: Float[Array, "rows heads length head_dim"],
    key: Float[Array, "rows kv_heads length head_dim"],
    value: Float[Array, "rows kv_heads length head_dim"],
    mask: Bool[Array, "rows length length"],
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns what `attend` does where `mask` hides all later slots, without most of the hidden work.

    Queries go in up to `CAUSAL_BLOCKS` blocks, each with the keys up to its end only.
    """
    length = query.shape[2]
    size = -(-length // (16 * CAUSAL_BLOCKS)) * 16
    blocks = [(slice(start, start + size), slice(start + size)) for start in range(0, length, size)]
    mixed = [
        _attend_slots_first(
            query[:, :, own], key[:, :, seen], value[:, :, seen], mask[:, own, seen], scale, softcap
        )
        for own, seen in blocks
    ]
    return jnp.concatenate(mixed, axis=2)


def _attend_slots_first(query, key, value, mask, scale: float, softcap: float):
    """Returns what `attend` does. Scores are [slots, queries], and divided by their sum after mixing.

    Where heads are small, scores are most of the memory that is moved: gradients then read them in the
    order they lie in, and once less (a third of the time for heads of 8 on a CPU).
    """
    rows, heads, length, head_dim = query.shape
    kv_heads, slots = key.shape[1:3]
    grouped = (query * scale).reshape(rows, kv_heads, -1, head_dim)
    scores = jnp.einsum(
        "rksd,rkqd->rksq", key, grouped, precision=PRECISION, preferred_element_type=jnp.float32
    )
    scores = softcapped(scores, softcap).reshape(rows, kv_heads, slots, -1, length)
    scores = jnp.where(mask.swapaxes(1, 2)[:, None, :, None], scores, MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=2, keepdims=True)))
    total = weights.sum(axis=2).reshape(rows, kv_heads, 1, -1)
    weights = weights.reshape(rows, kv_heads, slots, -1).astype(value.dtype)
    mixed = jnp.einsum(
        "rksd,rksq->rkdq", value, weights, precision=PRECISION, preferred_element_type=jnp.float32
    )
    mixed = (mixed / total).astype(value.dtype)
    return mixed.swapaxes(2, 3).reshape(rows, heads, length, head_dim)
