"""What is recorded of every token: log-probabilities, exact KL divergence, the mixture's normalizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dera_jax import realign
from dera_jax.decoding import sampling


class TokenRecord(NamedTuple):
    """Figures of one token in nats, at temperature 1 and before truncation."""

    logprob: Float[Array, " *rows"]
    """Of the token, under the mixture."""
    model_logprobs: Float[Array, "*rows models"]
    """Of the token, under each model alone; the reference first."""
    kl_to_reference: Float[Array, " *rows"]
    """KL(mixture ‖ reference) over the whole vocabulary, at this position."""
    log_normalizer: Float[Array, " *rows"] | None
    """log z of the mixture; None for a rule that is no mixture."""


def log_partition(logits: Float[Array, "rows vocab"]) -> Float[Array, " rows"]:
    """Returns log Z = log Σᵥ exp h(v)."""
    # By blocks, as the draw needs them: the compiler then computes both in one pass.
    return jax.nn.logsumexp(sampling.block_log_partition(logits), axis=-1)


def measure(
    logits: Float[Array, "models rows vocab"],
    mixed: Float[Array, "rows vocab"],
    weights: Float[Array, "rows _columns"],
    token: Int[Array, " rows"],
    mixture: bool,
) -> TokenRecord:
    """Returns the figures of `token`, drawn where the models gave `logits` and the rule `mixed`.

    KL(mix ‖ ref) = E_mix[h_mix − h_ref] − log Z_mix + log Z_ref: three sums over the vocabulary
    serve every figure.

    Args:
      mixed: −inf where the rule forbids a word.
      mixture: whether `mixed` is Σₘ wₘ hₘ, up to a constant of the row where weights are large; then log z
        is defined.
    """
    partition = log_partition(mixed)
    partitions = jnp.stack([log_partition(h) for h in logits])
    probabilities = jnp.exp(mixed - partition[:, None])
    gained = jnp.where(probabilities > 0, mixed - logits[0], 0.0)
    kl = jnp.sum(realign.rounded(probabilities * gained), axis=-1) - partition + partitions[0]
    drawn = [jnp.take_along_axis(h, token[:, None], axis=-1)[:, 0] for h in (mixed, *logits)]
    return TokenRecord(
        logprob=drawn[0] - partition,
        model_logprobs=jnp.stack(drawn[1:], axis=-1) - partitions.T,
        # Rounding can leave −1e-7 where the two distributions are one.
        kl_to_reference=jnp.maximum(kl, 0.0),
        log_normalizer=_log_normalizer(logits, mixed, weights, partition, partitions) if mixture else None,
    )


def _log_normalizer(
    logits: Float[Array, "models rows vocab"],
    mixed: Float[Array, "rows vocab"],
    weights: Float[Array, "rows models"],
    partition: Float[Array, " rows"],
    partitions: Float[Array, "models rows"],
) -> Float[Array, " rows"]:
    """Returns log z; of large weights by the most probable word, whose figures have no large parts.

    For every word  log z = log π_ref(v) + Σₘ λₘ (log πₘ(v) − log π_ref(v)) − log π_mix(v).
    """
    found = realign.log_normalizer(partition, partitions, weights)
    if len(logits) == 1:
        return found
    word = jnp.argmax(mixed, axis=-1)[:, None]
    of_mixture = jnp.take_along_axis(mixed, word, axis=-1)[:, 0] - partition
    reference, *aligned = (
        jnp.take_along_axis(h, word, axis=-1)[:, 0] - own for h, own in zip(logits, partitions, strict=True)
    )
    step = sum(realign.rounded(weights[:, m] * (one - reference)) for m, one in enumerate(aligned, start=1))
    return jnp.where(realign.is_large(weights), reference + step - of_mixture, found)
