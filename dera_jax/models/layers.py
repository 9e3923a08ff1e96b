"""The parts that transformers are built from: normalization, attention, activations, the cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.models.linear import PRECISION, Linear

MASKED = -1e30
"""Score of a position that may not be attended to. Finite: a row with no real position stays free of NaN."""

CAUSAL_BLOCKS = 3
"""Of queries, where all tokens are read at once: two thirds of the work are left."""

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""By their names in Hugging Face configurations."""


class KVCache(NamedTuple):
    """Keys and values of every layer, with room for tokens still to come.

    A left-padded prompt fills the first slots of every row, so all rows write their next token to
    the slot `index` of their own row, and slot distances within a row are position distances.

    Example: a bucket of 4 slots holds the prompt "a b" as `[·, ·, a, b]`, mask `[0, 0, 1, 1]`,
    positions 0 and 1 for a and b. The next token has position 2 and goes to slot 4.
    """

    keys: tuple[Float[Array, "rows kv_heads slots head_dim"], ...]
    values: tuple[Float[Array, "rows kv_heads slots head_dim"], ...]
    mask: Bool[Array, "rows slots"]
    index: Int[Array, " rows"]


def block_caller(remat: bool) -> Callable:
    """Returns what calls a block with its arguments, keeping its activations for gradients or not."""

    def call(block: nnx.Module, *args):
        return block(*args)

    return nnx.remat(call) if remat else call


def grow_cache(cache: Any, slots: int) -> Any:
    """Returns `cache` (a `KVCache`, or one with more fields) with room for `slots` more tokens."""
    room = ((0, 0), (0, 0), (0, slots), (0, 0))
    return cache._replace(
        keys=tuple(jnp.pad(k, room) for k in cache.keys),
        values=tuple(jnp.pad(v, room) for v in cache.values),
        mask=jnp.pad(cache.mask, ((0, 0), (0, slots))),
    )


def write_slots(
    cache: Float[Array, "rows kv_heads slots head_dim"],
    new: Float[Array, "rows kv_heads length head_dim"],
    index: Int[Array, " rows"],
) -> Float[Array, "rows kv_heads slots head_dim"]:
    """Returns `cache` with `new` written from slot `index` on, row by row."""
    return jax.vmap(lambda c, n, i: jax.lax.dynamic_update_slice(c, n, (0, i, 0)))(
        cache, new.astype(cache.dtype), index
    )


def attend(
    query: Float[Array, "rows heads length head_dim"],
    key: Float[Array, "rows kv_heads slots head_dim"],
    value: Float[Array, "rows kv_heads slots head_dim"],
    mask: Bool[Array, "rows length slots"],
    scale: float,
    softcap: float = 0.0,
    bias: Float[Array, "*rows heads length slots"] | None = None,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns softmax(q·k·scale + bias) v, each key-value head shared by heads/kv_heads query heads.

    Scores and softmax are in float32.

    Args:
      softcap: if not 0, scores are bounded by c · tanh(score/c).
      bias: of every score, where positions are told that way.
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, length, head_dim)
    scores = jnp.einsum(
        "rkgld,rksd->rkgls", grouped, key, precision=PRECISION, preferred_element_type=jnp.float32
    )
    scores = softcapped(scores * scale, softcap)
    if bias is not None:
        scores += bias.reshape(*bias.shape[:-3], kv_heads, heads // kv_heads, *bias.shape[-2:])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(value.dtype)
    mixed = jnp.einsum("rkgls,rksd->rkgld", weights, value, precision=PRECISION)
    return mixed.reshape(rows, heads, length, head_dim)


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


def softcapped(x: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """Returns cap · tanh(x/cap), or `x` where there is no cap (0)."""
    return cap * jnp.tanh(x / cap) if cap else x


def split_heads(
    x: Float[Array, "rows length width"], head_dim: int
) -> Float[Array, "rows heads length head_dim"]:
    """Returns the heads' parts of `x`, heads before positions."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def join_heads(x: Float[Array, "rows heads length head_dim"]) -> Float[Array, "rows length width"]:
    """Undoes `split_heads`."""
    rows, heads, length, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(rows, length, heads * head_dim)


def vocabulary_logits(
    hidden: Float[Array, "*rows width"], embed: nnx.Embed, head: Linear | None
) -> Float[Array, "*rows vocab"]:
    """Returns the logits of every word in float32, by the head or, where there is none, the embedding.

    They are not rounded to the activations' type: a mixture multiplies that rounding by |λ| + |1 − λ|.
    """
    if head is not None:
        return head(hidden, "float32")
    kernel = embed.embedding[...].T
    return jnp.matmul(hidden, kernel, precision=PRECISION, preferred_element_type=jnp.float32)


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale, computed in float32; with `unit_offset`, · (1 + scale)."""

    def __init__(self, width: int, epsilon: float, dtype: str, unit_offset: bool = False):
        self.scale = nnx.Param(jnp.zeros(width, dtype) if unit_offset else jnp.ones(width, dtype))
        self.epsilon, self.unit_offset = epsilon, unit_offset

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        exact = x.astype(jnp.float32)
        exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + self.epsilon)
        return (exact * (self.scale[...].astype(jnp.float32) + self.unit_offset)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x − mean x) / √(var x + ε) · scale + bias, computed in float32."""

    def __init__(self, width: int, epsilon: float, dtype: str):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        exact = x.astype(jnp.float32)
        exact -= jnp.mean(exact, axis=-1, keepdims=True)
        exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + self.epsilon)
        return (exact * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(
            x.dtype
        )
