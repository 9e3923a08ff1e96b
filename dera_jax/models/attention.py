"""Attention: of a few queries to caches, and of all tokens of a text to those before them."""

from collections.abc import Sequence
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

    Scores and softmax are in float32.

    Args:
      softcap: if not 0, scores are bounded by c · tanh(score/c).
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = jax.tree.leaves(spans[0].key)[0].shape[1]
    grouped = query.reshape(rows, kv_heads, -1, length, head_dim)
    scores = jnp.concatenate([_scores(grouped, span, scale, softcap) for span in spans], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    ends = np.cumsum([places(span.key) for span in spans[:-1]])
    parts = zip(jnp.split(weights, ends, axis=-1), spans, strict=True)
    mixed = sum(_mixed(part, span.value, query.dtype) for part, span in parts)
    return mixed.reshape(rows, heads, length, head_dim)


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
        scores *= slot_scale
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
        weights *= slot_scale
    weights = weights.astype(value.dtype)
    return jnp.einsum("rkgls,rksd->rkgld", weights, value, precision=PRECISION, preferred_element_type=dtype)


def _factors(slots: Slots, dtype: jnp.dtype) -> tuple[Array, Array | None]:
    """Returns what of keys or values goes into a product, and the factors of each slot, for scores."""
    if not isinstance(slots, Codes):
        return slots, None
    return slots.codes.astype(dtype), slots.scale[:, :, None, None, :, 0]


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
