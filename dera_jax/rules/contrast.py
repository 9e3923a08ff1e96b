"""Contrastive decoding: what the aligned model likes more than the reference, among words that it finds plausible; and
other sets of words."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dera_jax.realign import rounded
from dera_jax.rules.composed import Step

FAR = 1e4
"""Nats that a word which is taken out lies below all others: none, but finite."""

TOP = 128
"""First words of each model in which common ones are looked for; partly sorting costs a hundredth of sorting all."""


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
    last = jnp.clip(words.astype(jnp.int32), 1, mixed.shape[-1]) - 1
    logits = jnp.where(step.logits == 0, 0.0, step.logits)  # two zeros of other signs have no order
    unmixed = jnp.all(step.weights[:, 1:] == 0, axis=-1, keepdims=True)
    kept, found = _common_of_top(logits, last)
    # A vocabulary is sorted only where the tops have too few words in common.
    kept = jax.lax.cond(jnp.all(found | unmixed), lambda: kept, lambda: _common_of_all(logits, last))
    return jnp.where(kept | unmixed, mixed, mixed.min(axis=-1, keepdims=True) - FAR)


def _common_of_all(
    logits: Float[Array, "models rows vocab"], last: Int[Array, "rows 1"]
) -> Bool[Array, "rows vocab"]:
    """Returns the words inside, by sorting all: `last` + 1 of them, or one more."""
    # The k at which a word enters is its worst rank; that of the word that comes as the last one asked for is k.
    enters = jnp.argsort(jnp.argsort(-logits, axis=-1), axis=-1).max(axis=0)
    return enters <= jnp.take_along_axis(jnp.sort(enters, axis=-1), last, axis=-1)


def _common_of_top(
    logits: Float[Array, "models rows vocab"], last: Int[Array, "rows 1"]
) -> tuple[Bool[Array, "rows vocab"], Bool[Array, "rows 1"]]:
    """Returns the words inside, and whether the models' first words tell them: one of all tops has its ranks there."""
    rows, vocab = logits.shape[1:]
    count = min(TOP, vocab)
    # Without the barrier XLA sorts the whole vocabulary on CPUs (a hundred times the time): what is sliced is no top.
    tops = jax.lax.optimization_barrier(jax.lax.top_k(logits, count)[1])
    same = tops[0][:, :, None] == tops[:, :, None, :]  # models rows words places
    ranks = jnp.where(same.any(axis=-1), same.argmax(axis=-1), count)
    enters = ranks.max(axis=0)
    k = jnp.take_along_axis(jnp.sort(enters, axis=-1), jnp.minimum(last, count - 1), axis=-1)
    found = (k < count) & (last < count)
    inside = jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], tops[0]].set(enters <= k)
    return inside, found
