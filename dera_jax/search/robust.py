"""Weights of several scores that serve the worst of them."""

import numpy as np
from jaxtyping import Float

ROUNDS = 500


def robust_weights(scores: Float[np.ndarray, "parts candidates"]) -> Float[np.ndarray, " parts"]:
    """Returns  argmin_w log (1/K) Σₖ exp(Σᵢ wᵢ sᵢ(k))  over the simplex, by exponentiated gradients.

    The function is convex; a round multiplies each weight by exp(−η ∂/∂wᵢ), with the gradient E_q[sᵢ], q ∝ exp(w·s).
    η grows for as long as that lowers the function, and is halved where it does not.

    Args:
      scores: divided by β.

    >>> robust_weights(np.array([[0.0, 4.0], [1.0, 1.0]])).round(2).tolist()
    [0.0, 1.0]

    References: Son et al. 2025, Robust Multi-Objective Decoding, arXiv:2503.08796.
    """
    weights = np.full(len(scores), 1 / len(scores))
    value, share = _value(weights, scores)
    rate = 1.0 / (np.ptp(scores) or 1.0)
    for _ in range(ROUNDS):
        gradient = scores @ share
        logs = np.log(np.maximum(weights, 1e-300)) - rate * (gradient - gradient.min())
        tried = np.exp(logs - logs.max())
        tried /= tried.sum()
        found, there = _value(tried, scores)
        if found <= value:
            weights, value, share, rate = tried, found, there, rate * 1.5
        else:
            rate /= 2
    return weights


def _value(weights: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the function, up to log K, and each candidate's share of it."""
    level = weights @ scores
    share = np.exp(level - level.max())
    return float(level.max() + np.log(share.sum())), share / share.sum()
