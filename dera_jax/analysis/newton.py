"""The maximum of a concave log-likelihood in one or two parameters, and intervals of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dera_jax.analysis.estimates import FEW_GROUPS

STEPS = 60
PRECISE = 1e-6
"""Of the Newton decrement, in nats: steps beyond it change nothing that is told."""


@dataclass(frozen=True)
class Score:
    """A log-likelihood at one θ, in nats, with its first two derivatives."""

    value: float
    gradient: Float[np.ndarray, "tokens parameters"]
    """Of each token."""
    information: Float[np.ndarray, "parameters parameters"]
    """−∇² of the whole."""


def maximize(
    score: Callable[[np.ndarray], Score], start: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, Score]:
    """Returns the θ = start + free · x with the largest log-likelihood, and its score there.

    Newton's steps, halved until the value rises; it is concave, so there is one maximum.

    Args:
      score: of θ.
      free: directions in which θ may move, one in each column.

    Raises:
      ValueError: there is no maximum.
    """
    theta, here = np.asarray(start, np.float64), score(start)
    for _ in range(STEPS):
        gradient = free.T @ here.gradient.sum(axis=0)
        information = free.T @ here.information @ free
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            raise ValueError("the tokens do not tell the law they were drawn from") from None
        decrement = float(gradient @ step)
        if not np.isfinite(decrement):
            raise ValueError("the tokens do not tell the law they were drawn from")
        if decrement < PRECISE:
            return theta, here
        size = 1.0
        while size > 1e-4:
            there = score(theta + free @ (size * step))
            if np.isfinite(there.value) and there.value > here.value:
                break
            size /= 2
        else:
            return theta, here  # no nearer, as floats have it
        theta, here = theta + free @ (size * step), there
    return theta, here


def covariance(score: Score, free: np.ndarray, groups: Int[np.ndarray, " tokens"]) -> np.ndarray:
    """Returns the covariance of the estimate of θ, with tokens of one group allowed to depend on each other.

        free A⁻¹ B A⁻¹ freeᵀ,    A = freeᵀ information free,    B = G/(G − 1) Σ_g s_g s_gᵀ,

    s_g the sum of the gradients of a group (Liang and Zeger, Biometrika 73, 1986). Of fewer than 10 groups it is
    A⁻¹, that of tokens that are drawn from the law.
    """
    inverse = np.linalg.inv(free.T @ score.information @ free)
    _, numbers = np.unique(groups, return_inverse=True)
    count = numbers.max() + 1
    if count < FEW_GROUPS:
        return free @ inverse @ free.T
    each = score.gradient @ free
    sums = np.stack([np.bincount(numbers, column) for column in each.T], axis=1)
    return free @ inverse @ (sums.T @ sums * (count / (count - 1))) @ inverse @ free.T
