"""A budget in nats: the strength of every token is as large as the KL to the reference may be."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.rules.composed import Step
from dera_jax.rules.roots import crossing
from dera_jax.rules.schedules import scaled


def kl_budget(
    weights: Float[Array, "rows models"],
    step: Step,
    *,
    state: Float[Array, "rows 1"],
    nats: Float[Array, "rows 1"],
    response: Float[Array, "rows 1"],
) -> tuple[Float[Array, "rows models"], Float[Array, "rows 1"]]:
    """Returns the weights of  λₜ = s λ,  s the largest share up to 1 with KL(π(sλ) ‖ π_ref) ≤ b, and what is spent.

    b is `nats`, or what is left of `response` if that is less; the KL rises with s, as that of an exponential family
    does. It is that of the distribution before words are taken out and before temperature and truncation.

    Args:
      state: nats spent by the tokens so far.
      nats: for each token.
      response: for all tokens of a completion; infinite: no such limit.
    """
    reference = jax.nn.log_softmax(step.logits[0])

    def kl(share: Array) -> Array:
        logprobs = jax.nn.log_softmax(step.combine(scaled(weights, share)))
        each = jnp.exp(logprobs) * (logprobs - reference)
        return jnp.sum(each, axis=-1, keepdims=True)

    budget = jnp.minimum(nats, jnp.maximum(response - state, 0.0))
    none, whole = jnp.zeros_like(state), jnp.ones_like(state)
    share, _ = crossing(lambda share: kl(share) - budget, none, whole)
    share = jnp.where(kl(whole) <= budget, whole, share)
    return scaled(weights, share), state + kl(share)


kl_budget.initial_state = lambda rows: jnp.zeros((rows, 1), jnp.float32)  # type: ignore[attr-defined]
