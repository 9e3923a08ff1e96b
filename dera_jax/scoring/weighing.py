"""Weights of models for each prompt, from how well each of them predicts the prompt itself.

    wₘ = softmax(−log PPLₘ / τ),      log PPLₘ = −(1/(n − 1)) Σ_t log πₘ(x_t | x_<t),  t = 2 … n

or greedily, from the best model to the worst: each is mixed in with the share at which the mixture predicts the prompt
best.

References: Mavromatis et al., "Pack of LLMs", arXiv:2404.11531, the variants "sim" and "opt".
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.policies.policy import Policy
from dera_jax.scoring.likelihood import likelihoods


def check_read_alike(texts: Sequence[EncodedPrompt]) -> None:
    """Raises ValueError where models read other tokens of one prompt: their perplexities would not compare."""
    for text in texts:
        if any(ids != text.tokens[0] for ids in text.tokens):
            raise ValueError(
                f"prompt {text.id!r}: expected all models to read the same tokens, found different ones (templates, "
                "instructions or contrasts of their own)"
            )


def log_perplexities(
    policies: Sequence[Policy], texts: Sequence[EncodedPrompt], rows: int
) -> Iterator[tuple[int, Float[np.ndarray, " models"]]]:
    """Yields the number of a text with the mean of −log π over its tokens but the first, in nats, of each model.

    Args:
      texts: of `divergence.encode_texts`: at least two tokens each.
      rows: of a batch.

    Raises:
      ValueError: models read different tokens; logits that are not finite.
    """
    check_read_alike(texts)
    alone = [tuple(row) for row in np.eye(len(policies))[:, 1:]]  # λ at which each model is the mixture
    tokens = [text.tokens[0] for text in texts]
    for number, found in likelihoods(
        policies, [ids[:1] for ids in tokens], [ids[1:] for ids in tokens], alone, rows
    ):
        yield number, -found.logprobs / (len(tokens[number]) - 1)


STEPS = 20
"""Of a share between two bounds that are looked at, twice: shares are found to 1/200."""

EQUAL = 2e-6
"""Nats per token that are lost in float32."""


def greedy_weights(
    policies: Sequence[Policy],
    text: EncodedPrompt,
    log_perplexity: Float[np.ndarray, " models"],
) -> Float[np.ndarray, " models"]:
    """Returns weights that sum to 1, of a mixture that predicts a text no worse than the best model does.

    w ← (1 − s) w + s eₘ  with  s = argmin PPL, for each model m from the second best on. In s the logarithm of the
    perplexity is convex, so what two grids find is the minimum.

    Args:
      log_perplexity: of each model on the text, of `log_perplexities`.
    """
    ids, (first, *others) = text.tokens[0], np.argsort(log_perplexity, kind="stable")
    found = np.eye(len(policies))[first]
    for other in np.eye(len(policies))[others]:
        low, high = 0.0, 1.0
        for _ in range(2):
            shares = np.linspace(low, high, STEPS + 1).round(6)
            tried = [(1 - share) * found + share * other for share in shares]
            ((_, read),) = likelihoods(policies, [ids[:1]], [ids[1:]], [tuple(w[1:]) for w in tried], 1)
            # The smallest of those that are equal but for rounding: a model that adds nothing gets nothing.
            best = int((read.logprobs >= read.logprobs.max() - EQUAL * len(ids)).argmax())
            low, high = shares[max(best - 1, 0)], shares[min(best + 1, STEPS)]
        found = tried[best]
    return found


def weights(
    log_perplexity: Float[np.ndarray, "*texts models"], temperature: float
) -> Float[np.ndarray, "*texts models"]:
    """Returns  softmax(−log PPL / τ)  over the models.

    Args:
      temperature: τ > 0; the larger, the nearer to equal weights.

    >>> weights(np.log([2.0, 4.0]), 1.0).round(3).tolist()
    [0.667, 0.333]
    """
    # From the best model on, so that no τ overflows.
    behind = np.asarray(log_perplexity) - np.min(log_perplexity, axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        found = np.exp(-behind / temperature)
    return found / found.sum(axis=-1, keepdims=True)
