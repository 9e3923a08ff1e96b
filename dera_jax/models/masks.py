"""Where tokens stand, and which of them see which."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions_of(mask: Bool[Array, "rows length"]) -> Int[Array, "rows length"]:
    """Returns the positions of real tokens; padding before them stands at 0."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def causal(mask: Bool[Array, "rows length"]) -> Bool[Array, "rows length length"]:
    """Returns for each token which real ones it sees: itself and those before it."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, None]


def in_window(mask: Bool[Array, "rows length length"], window: int) -> Bool[Array, "rows length length"]:
    """Returns `mask` without what lies `window` or more slots back; in a row slots are positions apart."""
    slots = jnp.arange(mask.shape[2])
    return mask & (slots > slots[:, None] - window) if window else mask
