"""Gates: the aligned models take part where the reference is unsure, or as far as they are sure."""

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


def confidence(
    weights: Float[Array, "rows models"], step: Step, *, agreement: Float[Array, "rows 1"]
) -> Float[Array, "rows models"]:
    """Returns the weights of  λₜₘ = λₘ (cₘ / Σ c + a π_ref(vₘ)),  cₘ = max πₘ, vₘ the likeliest word of model m.

    Σ c is over the reference and the models whose strength is not 0. Where the brackets sum to more than 1, they are
    divided by their sum.

    References: Gan et al., "BlendIn", arXiv:2606.11201, with a = 0.1, as its published code computes it.
    """
    logprobs = jax.nn.log_softmax(step.logits)
    surest = jnp.exp(logprobs.max(axis=-1)).T
    takes_part = (weights != 0).at[:, 0].set(True)
    share = surest / jnp.sum(jnp.where(takes_part, surest, 0.0), axis=-1, keepdims=True)
    likeliest = step.logits[1:].argmax(axis=-1).T
    agreed = jnp.exp(jnp.take_along_axis(logprobs[0], likeliest, axis=-1))
    found = jnp.where(takes_part[:, 1:], share[:, 1:] + agreement * agreed, 0.0)
    aligned = weights[:, 1:] * found / jnp.maximum(1.0, found.sum(axis=-1, keepdims=True))
    left = 1.0 - aligned.sum(axis=-1, keepdims=True)
    # A rounding error below 0 is no weight.
    return jnp.concatenate([jnp.where(jnp.abs(left) < 1e-6, 0.0, left), aligned], axis=1)
