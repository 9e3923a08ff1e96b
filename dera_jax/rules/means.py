"""Power means of the models' probabilities, and their mixture with any weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.realign import rounded
from dera_jax.rules.contrast import FAR

NEAR = 0.5
"""Exponents up to here, in nats, are summed as differences from 1: their logarithms would lose them."""


def power(
    logits: Float[Array, "models rows vocab"],
    weights: Float[Array, "rows models"],
    state: None,
    *,
    p: Float[Array, "rows 1"],
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = log(Σ wₘ πₘᵖ) / p.

    p → 0 is the linear mixture (the reverse KL's mean), p = 1 the average of the probabilities, p = −1 their
    harmonic mean.

    Args:
      weights: none below 0.
    """
    logprobs, share = jax.nn.log_softmax(logits), weights.T[:, :, None]
    center = jnp.sum(share * logprobs, axis=0)
    exponents = jnp.where(share > 0, p * (logprobs - center), 0.0)
    largest = jnp.where(share > 0, exponents, -jnp.inf).max(axis=0)
    near = jnp.log1p(jnp.sum(share * jnp.expm1(jnp.clip(exponents, -NEAR, NEAR)), axis=0))
    far = largest + jnp.log(jnp.sum(share * jnp.exp(exponents - largest), axis=0))
    found = jnp.where(jnp.abs(exponents).max(axis=0) <= NEAR, near, far)
    return center + jnp.where(p == 0, 0.0, found / jnp.where(p == 0, 1.0, p)), state


def minimum(
    logits: Float[Array, "models rows vocab"], weights: Float[Array, "rows models"], state: None
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = minₘ log πₘ  over the models of weight above 0: the power mean of p → −∞."""
    logprobs = jax.nn.log_softmax(logits)
    return jnp.where(weights.T[:, :, None] > 0, logprobs, jnp.inf).min(axis=0), state


def maximum(
    logits: Float[Array, "models rows vocab"], weights: Float[Array, "rows models"], state: None
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = maxₘ log πₘ  over the models of weight above 0: the power mean of p → ∞."""
    logprobs = jax.nn.log_softmax(logits)
    return jnp.where(weights.T[:, :, None] > 0, logprobs, -jnp.inf).max(axis=0), state


def probabilities(
    logits: Float[Array, "models rows vocab"], weights: Float[Array, "rows models"], state: None
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = log max(0, Σ wₘ πₘ),  with weights of any sign.

    With weights of at least 0 it is the power mean of p = 1. Words that have nothing left lie below all others, at
    one height.

    References: Xu et al., "SafeDecoding", arXiv:2402.08983, §4.2: P + α (P_expert − P) is λ = α.
    """
    logprobs, share = jax.nn.log_softmax(logits), weights.T[:, :, None]
    largest = jnp.where(share != 0, logprobs, -jnp.inf).max(axis=0)
    # Relative to the likeliest, so that rare words are as exact as others, and one model alone is itself to the bit.
    left = rounded(share * jnp.exp(jnp.where(share != 0, logprobs - largest, 0.0))).sum(axis=0)
    found = largest + jnp.log(jnp.where(left > 0, left, 1.0))
    lowest = jnp.where(left > 0, found, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(left > 0, found, lowest - FAR), state


for _mean in (power, minimum, maximum):
    _mean.averages = True  # type: ignore[attr-defined]
