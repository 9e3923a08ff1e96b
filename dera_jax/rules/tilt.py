"""Controlled decoding: the mixture, tilted towards words that a value head says are worth more."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.realign import mix_centered, rounded


def tilt(
    logits: Float[Array, "models rows vocab"],
    weights: Float[Array, "rows models"],
    state: None,
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = (1 − Σλ) h_ref + Σ λₘ hₘ + V/β,  less a constant of each row.

    The last model is a value head, its strength is 1/β: for V = β log E[exp(R/β)] the completions have the law
    π_ref exp(R/β) / Z, and V = E[R] is its first-order approximation for large β. With 1/β = 0 it is the linear
    rule, bit for bit.

    Args:
      logits: of the reference, the aligned models, and the values of the next words.
      weights: (1 − Σλ − 1/β, λ₁, …, 1/β), as strengths of all models give them.

    References: Mudgal et al., "Controlled Decoding from Language Models", arXiv:2310.17022, Eq. 6; Yang & Klein,
    "FUDGE", arXiv:2104.05218.
    """
    inverse = weights[:, -1]
    reference = jnp.where(inverse == 0, weights[:, 0], 1.0 - jnp.sum(weights[:, 1:-1], axis=1))
    mixed = mix_centered(logits[:-1], jnp.concatenate([reference[:, None], weights[:, 1:-1]], axis=1))
    # Differences from the value that is favoured most: float32 would lose them beside a large V/β.
    values = logits[-1]
    favoured = jnp.where(inverse >= 0, values.max(axis=1), values.min(axis=1))
    step = rounded(inverse[:, None] * (values - favoured[:, None]))
    return jnp.where((inverse == 0)[:, None], mixed, mixed + step), state


tilt.takes_values = True
