"""Tokens drawn from mixtures of random logits, by NumPy alone."""

import numpy as np

from dera_jax.scoring.places import given_logits


def draw_tokens(seed, count, lambda_, temperature, top_k=None, top_p=None, vocab=80, apart=0.5, each=20):
    """Returns places where tokens were drawn; `each` of them are of one group."""
    numbers = np.random.default_rng(seed)
    reference = 2.5 * numbers.standard_normal((count, vocab))
    logits = np.stack([reference, reference + apart * numbers.standard_normal((count, vocab))])
    logits = logits.astype(np.float32)
    mixed = ((1 - lambda_) * logits[0] + lambda_ * logits[1]).astype(np.float64)
    if temperature == 0:
        tokens = mixed.argmax(1)
    else:
        kept = kept_probabilities(mixed / temperature, top_k, top_p)
        tokens = (kept.cumsum(1) < numbers.random((count, 1)) * (1 - 1e-12)).sum(1)
    return given_logits(logits, tokens.astype(np.int32), np.arange(count) // each)


def kept_probabilities(scaled, top_k=None, top_p=None):
    """Returns the probabilities [places, vocab] that top-k and then top-p leave."""
    order = np.argsort(-scaled, axis=1)
    q = np.exp(np.take_along_axis(scaled, order, 1) - scaled.max(1, keepdims=True))
    q[:, top_k or q.shape[1] :] = 0
    q /= q.sum(1, keepdims=True)
    q = np.where(q.cumsum(1) - q < (top_p or 2), q, 0)
    found = np.zeros_like(q)
    np.put_along_axis(found, order, q / q.sum(1, keepdims=True), 1)
    return found
