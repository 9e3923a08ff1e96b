"""Power means of the models' probabilities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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


for _mean in (power, minimum, maximum):
    _mean.averages = True  # type: ignore[attr-defined]
