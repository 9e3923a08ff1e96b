"""What a pool tells of one strength, under either law: that of whole responses, or the realigned policy's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool

from dera_jax.analysis.curves.groups import PerPrompt, Rows
from dera_jax.analysis.curves.pool import Pool


@dataclass(frozen=True)
class Point:
    """What the completions of each prompt say of a strength."""

    lambda_: float
    effective: float
    """Effective size as a share of the pool, in [0, 1]."""
    figures: Mapping[str, PerPrompt]
    """Means by name; NaN where a reward has no number for any of a prompt's completions."""
    slopes: Mapping[str, PerPrompt]
    """d mean / dλ of those of which it is known."""


class Law(Protocol):
    """A law of completions at every strength."""

    pool: Pool

    @property
    def name(self) -> str:
        """What files call it."""

    def at(self, strength: float) -> Point:
        """Returns what the pool says of a strength."""


@dataclass(frozen=True)
class ResponseLaw:
    """p(y) ∝ π_ref(y)^{1−λ} π_al(y)^λ  (Eq. 5): weights  w = π_ref^{1−λ} π_al^λ / q̄,  normalized for each prompt.

    The mean weight of a prompt is an unbiased estimate of Z(λ), and with ℓ = log π_al/π_ref

      d log Z/dλ = E[ℓ],      d E[f]/dλ = Cov(f, ℓ),      KL(p ‖ p₀) = λ E[ℓ] − log Z + log Z(0),

    p₀ being the law at λ = 0: the reference, given that it ends in time where cut completions are no members.
    """

    pool: Pool
    limit_means: str = "ended"
    """One of `notation.LIMIT_MEANS`."""

    name = "response"

    @property
    def member(self) -> Bool[np.ndarray, " rows"]:
        """Completions whose weight is not 0."""
        return ~self.pool.cut if self.limit_means == "ended" else np.ones_like(self.pool.cut)

    def log_weights(self, strength: float) -> Rows:
        """Returns log w; −∞ of those that are no members."""
        return np.where(self.member, self.pool.log_power(strength) - self.pool.log_proposal, -np.inf)

    def at(self, strength: float) -> Point:
        pool = self.pool
        log_w = self.log_weights(strength)
        total = pool.log_sums(log_w)
        p = np.exp(log_w - total[pool.prompt])
        log_z = total - np.log(pool.sizes)
        ratio, variance = self._mean_and_slope(p, pool.log_ratio)
        figures = {
            "kl": strength * ratio - log_z + self._log_z_of_reference,
            "log_z": log_z,
            "log_ratio": ratio,
        }
        slopes = {"kl": strength * variance, "log_z": ratio, "log_ratio": variance}
        for name, values in self._values().items():
            figures[name], slopes[name] = self._mean_and_slope(p, values)
        return Point(strength, pool.effective(p), figures, slopes)

    @cached_property
    def _log_z_of_reference(self) -> PerPrompt:
        return self.pool.log_sums(self.log_weights(0.0)) - np.log(self.pool.sizes)

    def _values(self) -> dict[str, Rows]:
        cut = {"cut": self.pool.cut.astype(np.float64)} if self.limit_means == "absorb" else {}
        return {**self.pool.values, **cut}

    def _mean_and_slope(self, p: Rows, values: Rows) -> tuple[PerPrompt, PerPrompt]:
        pool, known = self.pool, ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            p = np.where(known, p, 0) / pool.sums(np.where(known, p, 0))[pool.prompt]
        values = np.where(known, values, 0)
        mean = pool.sums(p * values)
        ratio = pool.log_ratio - pool.sums(p * pool.log_ratio)[pool.prompt]
        return mean, pool.sums(p * (values - mean[pool.prompt]) * ratio)


@dataclass(frozen=True)
class TokenLaw:
    """The realigned policy q of tokens (Eq. 6): weights  w = q(y)/q̄(y),  whose mean is 1 for each prompt.

      E[f] = Σ w f / Σ w  over all prompts,      d E[f]/dλ = E[f s],      s = ∂ log q/∂λ = ℓ − Σₜ E_q[ℓₜ]

    A prompt's value is what it adds to the ratio:  E[f] + (mean w f − E[f] mean w) / mean w.
    """

    pool: Pool
    """Has log_normalizers and kl at every strength that is asked for."""

    name = "token"

    def at(self, strength: float) -> Point:
        pool = self.pool
        w = np.exp(pool.log_mixture(strength) - pool.log_proposal)
        score = pool.log_ratio - self._expected(strength)
        figures, slopes = {"kl": self._ratio(w, pool.kl[strength])}, {}
        for name, values in {**pool.values, "cut": pool.cut.astype(np.float64)}.items():
            figures[name] = self._ratio(w, values)
            slopes[name] = self._slope(w, values, score)
        size = float(w.sum() ** 2 / (w**2).sum())
        effective = (size - 1) / (len(w) - 1) if len(w) > 1 else 0.0
        return Point(strength, effective, figures, slopes)

    def _means(self, values: Rows) -> PerPrompt:
        return self.pool.sums(values) / self.pool.sizes

    def _ratio(self, w: Rows, values: Rows) -> PerPrompt:
        known = ~np.isnan(values)
        w, values = np.where(known, w, 0), np.where(known, values, 0)
        weight, weighted = self._means(w), self._means(w * values)
        mean = weighted.mean() / weight.mean()
        return mean + (weighted - mean * weight) / weight.mean()

    def _slope(self, w: Rows, values: Rows, score: Rows) -> PerPrompt:
        known = ~np.isnan(values)
        w, values = np.where(known, w, 0), np.where(known, values, 0)
        weight = self._means(w)
        mean = self._means(w * values).mean() / weight.mean()
        rise = self._means(w * score * (values - mean))
        slope = rise.mean() / weight.mean()
        return slope + (rise - slope * weight) / weight.mean()

    def _expected(self, strength: float) -> Rows:
        """Returns  Σₜ E_q[ℓₜ] = d Σ log zₜ/dλ,  from  KL(q ‖ π_ref) = λ E_q[ℓ] − log z  where λ is not 0."""
        pool = self.pool
        if strength:
            return (pool.kl[strength] + pool.log_normalizers[strength]) / strength
        # Of a parabola through 0 and the next two strengths.
        known = sorted((s for s in pool.log_normalizers if s > 0), reverse=False)[:2]
        if len(known) < 2:
            return np.zeros_like(pool.reference)
        (a, b), (at_a, at_b) = known, (pool.log_normalizers[s] for s in known)
        return (at_a * b / a - at_b * a / b) / (b - a)
