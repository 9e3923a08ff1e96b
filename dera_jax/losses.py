"""Training losses, one equation each."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def sft_loss(
    logprobs: Float[Array, "rows completion"], mask: Bool[Array, "rows completion"]
) -> Float[Array, ""]:
    """Returns the mean negative log-likelihood of a completion token, in nats.

    L = −Σ log π(yₜ | x, y₍<t₎) / Σ 1,  both sums over the real tokens of the batch.
    """
    return -jnp.sum(jnp.where(mask, logprobs, 0.0)) / jnp.sum(mask)


def policy_gradient_loss(
    logprobs: Float[Array, " rows"], advantages: Float[Array, " rows"]
) -> Float[Array, ""]:
    """Returns a loss whose gradient is minus REINFORCE's:  L = −mean(A · log π(y|x)).

    Args:
      logprobs: log π(y|x) of whole completions drawn from π, in nats.
      advantages: constants; R − β log(π/π_ref) less a baseline.

    References: Eq. 13.
    """
    return -jnp.mean(advantages * logprobs)


def leave_one_out(
    rewards: Float[Array | np.ndarray, "prompts samples"],
) -> Float[Array | np.ndarray, "prompts samples"]:
    """Returns each sample's reward less the mean of the prompt's other samples.

    Aᵢ = rᵢ − Σ_{j≠i} rⱼ / (n − 1).  The baseline does not depend on sample i, so the gradient stays
    unbiased. Needs at least two samples.

    >>> leave_one_out(np.array([[1.0, 0.0, 0.0]]))
    array([[ 1. , -0.5, -0.5]])
    """
    n = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (n / (n - 1))
