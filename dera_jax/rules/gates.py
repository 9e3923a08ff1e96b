"""Gates: the aligned models take part where the reference is unsure."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.rules.composed import Step
from dera_jax.rules.schedules import scaled


def nudging(
    weights: Float[Array, "rows models"], step: Step, *, gamma: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜ = λ where max π_ref < γ, else 0.

    References: Fei et al., "Nudging", arXiv:2410.09300, where a word of the aligned model is finished before the
    reference is asked again.
    """
    surest = jnp.exp(jax.nn.log_softmax(step.logits[0]).max(axis=-1, keepdims=True))
    return scaled(weights, (surest < gamma).astype(weights.dtype))


def entropy(
    weights: Float[Array, "rows models"], step: Step, *, above: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜ = λ where the reference's entropy is above so many nats, else 0."""
    logprobs = jax.nn.log_softmax(step.logits[0])
    found = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1, keepdims=True)
    return scaled(weights, (found > above).astype(weights.dtype))
