"""Multi-objective decoding for models that were trained with another divergence than the reverse KL.

For a divergence Σ π_ref f(π/π_ref) the optimum of a weighted sum of rewards is  π_ref f′⁻¹(Σ wₘ f′(πₘ/π_ref) − c),
with c so that it sums to 1: here, as for the linear mixture, token by token.

References: Shi et al., "Decoding-Time Language Model Alignment with Multiple Objectives", arXiv:2406.18853, Eq. 7.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.rules.roots import crossing


def alpha_divergence(
    logits: Float[Array, "models rows vocab"],
    weights: Float[Array, "rows models"],
    state: None,
    *,
    alpha: Float[Array, "rows 1"],
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns log π of  π = π_ref (Σ wₘ (πₘ/π_ref)^−α + c)^(−1/α),  whose f′(x) = (1 − x^−α)/α.

    α = 1 is the forward KL; α → 0 the reverse one, whose mixture is linear.

    Args:
      weights: none below 0.
      alpha: above 0, at most 1.
    """
    logprobs = jax.nn.log_softmax(logits)
    reference = logprobs[0]
    shares = jnp.log(weights.T)[:, :, None]  # −∞ leaves a model out
    log_sum = jax.nn.logsumexp(shares - alpha * (logprobs - reference), axis=0)
    least = log_sum.min(axis=-1, keepdims=True)
    # c = −e^least (1 − e^−s): above the smallest sum nothing cancels. s = 0 is c = 0, where the sum is at most 1.
    beyond = jnp.exp(jnp.clip(log_sum - least, max=80.0)) - 1.0
    of_least = jnp.take_along_axis(reference, log_sum.argmin(axis=-1, keepdims=True), axis=-1)

    def found(s: Array) -> Array:
        near = jnp.log(beyond + jnp.exp(-s))
        return reference - (jnp.where(log_sum - least > 60.0, log_sum - least, near) + least) / alpha

    return _normalized(found, least - alpha * of_least), state


def jensen_shannon(
    logits: Float[Array, "models rows vocab"], weights: Float[Array, "rows models"], state: None
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns log π of  π = π_ref f′⁻¹(Σ wₘ f′(πₘ/π_ref) − c),  f′(x) = log 2x/(1 + x).

    Args:
      weights: none below 0.
    """
    logprobs = jax.nn.log_softmax(logits)
    reference = logprobs[0]
    # f′⁻¹(u) = 1/(2 e^−u − 1), and 2 e^−u = e^a with a = Σ wₘ log(1 + π_ref/πₘ), up to c.
    ratios = jax.nn.softplus(reference - logprobs)
    above = jnp.expm1(jnp.clip(jnp.sum(weights.T[:, :, None] * ratios, axis=0), max=60.0))
    least = above.min(axis=-1, keepdims=True)
    of_least = jnp.take_along_axis(reference, above.argmin(axis=-1, keepdims=True), axis=-1)

    def found(s: Array) -> Array:
        rest = least * jnp.exp(-s)
        return reference - jnp.log((above - least) / (1.0 + least) * (1.0 + rest) + rest)

    return _normalized(found, jnp.log(least) - of_least), state


def _normalized(found: Callable[[Array], Array], most: Float[Array, "rows 1"]) -> Float[Array, "rows vocab"]:
    """Returns `found(s)`, log-probabilities that rise with s, where they sum to 1, for an s from 0 to `most`."""
    most = jnp.maximum(most, 0.0)

    def log_mass(s: Array) -> Array:
        return jax.nn.logsumexp(found(s), axis=-1, keepdims=True)

    return found(crossing(log_mass, jnp.zeros_like(most), most)[1])


for _mean in (alpha_divergence, jensen_shannon):
    _mean.averages = True  # type: ignore[attr-defined]
