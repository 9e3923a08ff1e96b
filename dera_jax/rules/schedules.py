"""Strengths that change with the number of tokens drawn."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.rules.composed import Step


def scaled(
    weights: Float[Array, "rows models"], share: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of a share of the strength: share · w + (1 − share) · (1, 0, …)."""
    aligned = share * weights[:, 1:]
    # As written, the reference's weight is 1 − Σλ; with share 1 it is the given one to the bit.
    reference = jnp.where(share == 1, weights[:, :1], 1.0 - share * (1.0 - weights[:, :1]))
    return jnp.concatenate([reference, aligned], axis=1)


def first(
    weights: Float[Array, "rows models"], step: Step, *, tokens: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜ = λ for t < tokens, then 0.

    References: Xu et al., "SafeDecoding", arXiv:2402.08983, §4.2.
    """
    return scaled(weights, (step.context.drawn[:, None] < tokens).astype(weights.dtype))


def ramp(
    weights: Float[Array, "rows models"], step: Step, *, tokens: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜ = λ min(1, t / tokens),  t the tokens drawn before."""
    return scaled(weights, jnp.minimum(1.0, step.context.drawn[:, None] / tokens))


def decay(
    weights: Float[Array, "rows models"], step: Step, *, tokens: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜ = λ exp(−t / tokens),  t the tokens drawn before."""
    return scaled(weights, jnp.exp(-step.context.drawn[:, None] / tokens))
