"""Random numbers of a request's own, whatever its strength, its neighbours and the machine."""

import hashlib
import math

from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request

MANTISSA = 53
"""Bits of a float64 between 0 and 1."""


def uniform(request: Request, config: DecodeConfig, purpose: str, number: int = 0) -> float:
    """Returns a number between 0 and 1, neither included, that seed, prompt, turn, sample and attempt decide.

    Args:
      config: of requests that bring none of their own.
      purpose: numbers for different purposes are independent.
      number: of several for one purpose.
    """
    seed = (request.config or config).seed
    key = (seed, request.prompt.id, request.turn, request.sample, request.attempt, purpose, number)
    digest = hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).digest()
    # In the middle of one of 2⁵³ equal parts; the last of them would round to 1.
    part = int.from_bytes(digest[:8], "big") >> (64 - MANTISSA)
    return min((part + 0.5) / 2**MANTISSA, 1 - 2.0**-MANTISSA)


def gumbel(u: float) -> float:
    """Returns the standard Gumbel variable at the quantile `u`, which lies between 0 and 1."""
    return -math.log(-math.log(u))


def poisson(mean: float, u: float) -> int:
    """Returns the Poisson variable at the quantile `u`: the least k with P(K ≤ k) ≥ u.

    >>> [poisson(2.0, u) for u in (0.01, 0.5, 0.99)]
    [0, 2, 6]
    """
    below = 0.0
    # Where rounding keeps the sum below `u`, what is left has no probability worth telling.
    most = math.ceil(mean + 20 * math.sqrt(mean) + 40)
    for k in range(most):
        below += math.exp((k * math.log(mean) if k else 0.0) - mean - math.lgamma(k + 1))
        if below >= u:
            return k
    return most
