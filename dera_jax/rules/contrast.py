"""Contrastive decoding: what the aligned model likes more than the reference, among words that it finds plausible; and
other sets of words."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dera_jax.realign import rounded
from dera_jax.rules.composed import Step

FAR = 1e4
"""Nats that a word which is taken out lies below all others: none, but finite."""


def contrastive(
    logits: Float[Array, "models rows vocab"], weights: Float[Array, "rows models"], state: None
) -> tuple[Float[Array, "rows vocab"], None]:
    """Returns  h = Σ λₘ (log πₘ − log π_ref).

    Where λ grows, the linear mixture comes to it: only its own h_ref is left out.

    References: Li et al., "Contrastive Decoding", arXiv:2210.15097, Eq. 2, the reference being the amateur.
    """
    logprobs = jax.nn.log_softmax(logits)
    steps = rounded(weights.T[1:, :, None] * (logprobs[1:] - logprobs[0]))
    return steps.sum(axis=0), state


def plausible(
    mixed: Float[Array, "rows vocab"], step: Step, *, alpha: Float[Array, "rows 1"]
) -> Float[Array, "rows vocab"]:
    """Returns logits without the words that the first aligned model gives less than α of its largest probability.

    α = 0 keeps all words. A model alone is its own judge.

    References: arXiv:2210.15097, Eq. 3.
    """
    judge = step.logits[min(1, len(step.logits) - 1)]
    likely = judge >= judge.max(axis=-1, keepdims=True) + jnp.log(alpha)
    return jnp.where(likely, mixed, mixed.min(axis=-1, keepdims=True) - FAR)


def common(
    mixed: Float[Array, "rows vocab"], step: Step, *, words: Float[Array, "rows 1"]
) -> Float[Array, "rows vocab"]:
    """Returns logits without the words outside  ⋂ₘ top-k(πₘ),  k the smallest at which so many words are inside.

    Two words may enter at one k: one more than asked for is kept then. Where the strength is 0, all words are.

    References: Xu et al., "SafeDecoding", arXiv:2402.08983, §4.2.
    """
    # The k at which a word enters is its worst rank; that of the word that comes as the last one asked for is k.
    enters = jnp.argsort(jnp.argsort(-step.logits, axis=-1), axis=-1).max(axis=0)
    last = jnp.clip(words.astype(jnp.int32), 1, mixed.shape[-1]) - 1
    k = jnp.take_along_axis(jnp.sort(enters, axis=-1), last, axis=-1)
    kept = (enters <= k) | jnp.all(step.weights[:, 1:] == 0, axis=-1, keepdims=True)
    return jnp.where(kept, mixed, mixed.min(axis=-1, keepdims=True) - FAR)
