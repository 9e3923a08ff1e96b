"""The parts that decoders are built from: normalization, rotary positions, attention, cache."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.configs import check_number

MASKED = -1e30
"""Score of a position that may not be attended to. Finite: a row with no real position stays free of NaN."""

PRECISION = jax.lax.Precision.HIGHEST
"""Of matrix products: float32 is float32 on accelerators too. Other types are not affected."""


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


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """Returns `cache` with empty room behind it, `slots` in all."""
    extra = slots - cache.mask.shape[-1]
    room = ((0, 0), (0, 0), (0, extra), (0, 0))
    return KVCache(
        keys=tuple(jnp.pad(k, room) for k in cache.keys),
        values=tuple(jnp.pad(v, room) for v in cache.values),
        mask=jnp.pad(cache.mask, ((0, 0), (0, extra))),
        index=cache.index,
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


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: which frequencies the head dimensions turn at."""

    theta: float = 10_000.0
    """Base of the geometric series of wavelengths."""
    kind: str = "default"
    """`default` or `llama3`."""
    factor: float = 1.0
    """How many times longer the context was made (llama3)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """Wavelengths between original_max_positions / high and / low are blended (llama3)."""
    original_max_positions: int = 0
    """Context length, in tokens, before it was made longer (llama3)."""

    def __post_init__(self):
        check_number("rope_theta", self.theta, 1.0, math.inf)
        check_number("rope factor", self.factor, 1.0, math.inf)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns the angle in radians that each pair of dimensions turns per position."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        # The power in float64: NumPy's in float32 is an ulp off, which 100 000 positions make 0.01 radians.
        powers = (self.theta ** exponents.astype(np.float64)).astype(np.float32)
        frequencies = np.float32(1.0) / powers
        if self.kind == "default":
            return frequencies
        # llama3: long wavelengths are stretched by `factor`, short ones kept, between them blended.
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return ((1 - blend) * frequencies / self.factor + blend * frequencies).astype(np.float32)


def rotate(
    x: Float[Array, "rows heads length head_dim"],
    angles: Float[Array, "rows length half"],
) -> Float[Array, "rows heads length head_dim"]:
    """Returns `x` with dimension pairs (i, i + head_dim/2) turned by `angles`."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    query: Float[Array, "rows heads length head_dim"],
    key: Float[Array, "rows kv_heads slots head_dim"],
    value: Float[Array, "rows kv_heads slots head_dim"],
    mask: Bool[Array, "rows length slots"],
    scale: float,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns softmax(q·k·scale) v, each key-value head shared by heads/kv_heads query heads.

    Scores and softmax are in float32.
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, length, head_dim)
    scores = jnp.einsum(
        "rkgld,rksd->rkgls", grouped, key, precision=PRECISION, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, None, None], scores * scale, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("rkgls,rksd->rkgld", weights, value, precision=PRECISION)
    return mixed.reshape(rows, heads, length, head_dim)


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale, computed in float32."""

    def __init__(self, width: int, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        exact = x.astype(jnp.float32)
        exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...] * exact.astype(x.dtype)
