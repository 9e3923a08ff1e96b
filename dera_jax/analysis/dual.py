"""The strength that a constraint asks for, from completions of the reference alone.

The policy nearest to the reference whose mean of g is at least b, or the one of them with the largest E[r] − β KL, is

  π ∝ π_ref exp((r + μ g)/β),      μ = argmin_{μ ≥ 0} D(μ),
  D(μ) = E_x[β log E_ref exp((r + μ g)/β)] − μ b,

convex, with the slope E_π[g] − b. Without r, a model that was trained for g at β has it at the strength λ = μ.

References: Huang et al., "One-Shot Safety Alignment for LLMs via Optimal Dualization", arXiv:2405.19544.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from dera_jax.analysis.curves.groups import Groups, Rows, grouped
from dera_jax.analysis.estimates import LEVEL

FEW = 0.05
"""Share of the completions that carries the weight, below which the solution hangs on a few of them."""
RESAMPLES = 200


@dataclass(frozen=True)
class Dual:
    """The solution."""

    mu: float
    """Weight of g beside r, or λ at which a model trained for g at β meets the constraint."""
    low: float
    """Of a 95 % interval of μ over prompts; NaN where a resample cannot meet the constraint, or of one prompt."""
    high: float
    mean: float
    """E_π[g]"""
    plain: float
    """E[g] at μ = 0."""
    reward: float | None
    """E_π[r]"""
    kl: float
    """KL(π ‖ π_ref), in nats, by the completions."""
    effective: float
    """Share of the completions that carries the weight, in [0, 1]."""
    prompts: int
    completions: int


def tilted(groups: Groups, log_weights: Rows) -> Rows:
    """Returns weights ∝ exp(log_weights) that sum to 1 for each prompt."""
    return np.exp(log_weights - groups.log_sums(log_weights)[groups.prompt])


def solve(
    rows: Sequence[dict], constraint: str, bound: float, beta: float, reward: str | None = None, seed: int = 0
) -> Dual:
    """Returns the solution for E[g] ≥ b.

    Args:
      rows: at λ = 0, several of a prompt, all with the rewards.
      constraint: g, a reward.
      bound: b.
      beta: > 0.
      reward: r; None: only the KL is minimized.
      seed: of the resamples.

    Raises:
      ValueError: one completion of each prompt, or completions that cannot meet the constraint.
    """
    groups, order = grouped(rows)
    if groups.count == len(groups.prompts):
        raise ValueError("expected several completions of a prompt (--num-samples), found one of each")

    def values(name: str) -> Rows:
        return np.array([rows[n]["rewards"][name] for n in order], np.float64)

    g, r = values(constraint), None if reward is None else values(reward)
    base = np.zeros(len(g)) if r is None else r / beta
    most = np.maximum.reduceat(g, groups.starts)

    def each(mu: float) -> Float[np.ndarray, " prompts"]:
        return groups.sums(tilted(groups, base + mu * g / beta) * g)

    # A sum's rounding is no violation: rewards may be equal, and the bound their very value.
    met = bound - 1e-12 * max(1.0, abs(bound))
    if each(0.0).mean() < met and most.mean() <= bound:
        raise ValueError(
            f"{constraint}>={bound:g}: expected less than {most.mean():.4g}, the mean of each prompt's largest, which "
            "no finite weight reaches; draw more (--num-samples), or ask for less"
        )
    scale = beta / max(float(np.ptp(g)), 1e-300)
    mu = _root(lambda mu: each(mu).mean() - met, scale)
    if mu is None:
        raise ValueError(f"{constraint}>={bound:g}: these completions reach it at no finite weight")
    p = tilted(groups, base + mu * g / beta)
    log_p = np.log(np.maximum(p, 1e-300)) + np.log(groups.sizes)[groups.prompt]
    low, high = _interval(each, met, scale, len(groups.prompts), seed)
    return Dual(
        mu, low, high, float(each(mu).mean()), float(each(0.0).mean()),
        None if r is None else float(groups.sums(p * r).mean()), float(groups.sums(p * log_p).mean()),
        groups.effective(p), len(groups.prompts), groups.count,
    )  # fmt: skip


def _root(slope, scale: float) -> float | None:
    """Returns the least μ ≥ 0 at which an increasing slope is not below 0; None if there is none."""
    if slope(0.0) >= 0:
        return 0.0
    high = scale
    for _ in range(60):
        if slope(high) >= 0:
            return float(brentq(slope, 0.0, high, xtol=1e-12 * high, rtol=1e-13))
        high *= 2
    return None


def _interval(each, bound: float, scale: float, prompts: int, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of μ when prompts are drawn with replacement."""
    if prompts < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    found = [_root(lambda mu, count=count: count @ each(mu) / prompts - bound, scale) for count in drawn]
    if None in found:
        return np.nan, np.nan
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
