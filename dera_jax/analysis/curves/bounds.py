"""Two-sided bounds of log Z(λ) for 0 ≤ λ ≤ 1.

From below, the logarithm of a mean of weights: it is log Z at most, on average. From above, the same mean with an exact
sample y* of p in the place of a completion: with k drawn by its share nₖ qₖ(y*) / (n q̄(y*)), y* for one of the nₖ
drawn at λₖ, it is at least log Z on average. A completion of the mixture at λ whose uniform number is below Π zₜ ≤ 1 is
an exact sample; those of one half of a prompt's completions stand among the other half. log Z is convex in λ and at
most 0 between 0 and 1, so that between two strengths the chord is a bound, and 0 where a prompt has no exact sample.

Reference: Grosse, Ghahramani and Adams 2015, Sandwiching the marginal likelihood using bidirectional Monte Carlo.
"""

from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.curves.laws import ResponseLaw
from dera_jax.analysis.curves.pool import Pool
from dera_jax.analysis.estimates import Estimate, estimate


@dataclass(frozen=True)
class Bound:
    """Bounds of the mean of log Z over prompts at a strength."""

    lambda_: float
    lower: Estimate
    upper: Estimate
    exact: int
    """Exact samples behind the upper bound."""


def bounds(law: ResponseLaw, seed: int = 0) -> list[Bound]:
    """Returns bounds at those strengths of the pool that lie in [0, 1].

    Args:
      seed: of the numbers that accept, and that say in whose place an exact sample stands.
    """
    return [_bound(law, strength, seed) for strength in law.pool.strengths if 0 <= strength <= 1]


def _bound(law: ResponseLaw, strength: float, seed: int) -> Bound:
    pool = law.pool
    lower = estimate(pool.log_sums(law.log_weights(strength)) - np.log(pool.sizes), pool.prompts)
    if strength in (0.0, 1.0) and law.limit_means == "absorb":
        # The models themselves: Z = 1.
        return Bound(strength, lower, Estimate(0.0, 0.0, 0.0), len(pool.prompt))
    rng = np.random.default_rng(seed)
    sums, counts = np.zeros(len(pool.prompts)), np.zeros(len(pool.prompts), int)
    accepted, halves = _accepted(law, strength, rng), _halves(pool)
    for half in (0, 1):
        others = _Others(law, strength, halves != half)
        for row in np.flatnonzero(accepted & (halves == half)):
            prompt = pool.prompt[row]
            if others.counts[:, prompt].any() and counts[prompt] < MOST_EXACT * (half + 1):
                sums[prompt] += others.log_mean_with(row, rng)
                counts[prompt] += 1
    upper = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    return Bound(strength, lower, estimate(upper, pool.prompts), int(counts.sum()))


MOST_EXACT = 16
"""Exact samples of a prompt that are looked at in each half; more change little."""


def _accepted(law: ResponseLaw, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Returns which completions are exact samples at the strength."""
    log_z = law.pool.log_normalizers[strength]
    drawn = np.log(rng.random(len(log_z))) < log_z
    return drawn & law.member & (law.pool.drawn_at == strength)


def _halves(pool: Pool) -> np.ndarray:
    """Returns 0 or 1 for each completion: every other one of those of a prompt and strength."""
    halves = np.zeros(len(pool.prompt), int)
    for strength in pool.strengths:
        at = np.flatnonzero(pool.drawn_at == strength)
        first = np.append(True, pool.prompt[at][1:] != pool.prompt[at][:-1])
        place = np.arange(len(at)) - np.maximum.accumulate(np.where(first, np.arange(len(at)), 0))
        halves[at] = place % 2
    return halves


class _Others:
    """Half of the completions, as a pool of its own, among which exact samples are put."""

    def __init__(self, law: ResponseLaw, strength: float, half: np.ndarray):
        pool = self.pool = law.pool
        self.half = half
        self.counts = np.array(
            [pool.sums((half & (pool.drawn_at == each)).astype(float)) for each in pool.strengths]
        )
        """[strengths, prompts]"""
        with np.errstate(divide="ignore"):
            logs = np.log(self.counts)[:, pool.prompt]
        self.parts = logs + [pool.log_mixture(each) for each in pool.strengths]
        """log nₖ qₖ(y)  [strengths, rows], of every completion."""
        log_weights = pool.log_power(strength) - np.logaddexp.reduce(self.parts)
        self.log_weights = np.where(law.member, log_weights, -np.inf)
        """log w(y)/n"""

    def log_mean_with(self, row: int, rng: np.random.Generator) -> float:
        """Returns log of the mean weight, the exact sample `row` in the place of one of its prompt's."""
        pool, parts = self.pool, self.parts[:, row]
        shares = np.exp(parts - np.logaddexp.reduce(parts))
        replaced = pool.strengths[rng.choice(len(shares), p=shares / shares.sum())]
        start = pool.starts[pool.prompt[row]]
        own = np.arange(start, start + pool.sizes[pool.prompt[row]])
        own = own[self.half[own]]
        left_out = own[pool.drawn_at[own] == replaced][0]
        return float(np.logaddexp.reduce(self.log_weights[np.append(own[own != left_out], row)]))
