"""What must hold of a curve of whole responses, and by how much it does not."""

from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.curves.laws import ResponseLaw
from dera_jax.analysis.estimates import Estimate, estimate

PLACES = 41
"""Strengths in [0, 1] that the integral is taken over, by Simpson's rule."""
STEP = 1e-3
"""Of finite differences."""


@dataclass(frozen=True)
class Certificate:
    """Residuals of identities, each 0 but for noise."""

    integral: Estimate | None
    """∫₀¹ E_s[ℓ] ds = log Z(1) − log Z(0), which is 0 where cut responses are members; None otherwise."""
    ends: dict[str, Estimate]
    """Of each figure, at λ = 0 and 1: the curve less the plain mean of the completions drawn there."""
    slope: float
    """The largest distance of a slope by covariance from the finite difference, over all figures, in their units."""


def certify(law: ResponseLaw, strengths: list[float]) -> Certificate:
    """Returns the residuals.

    Args:
      strengths: at which slopes are looked at.
    """
    whole = law.limit_means == "absorb" and {0.0, 1.0} <= set(law.pool.strengths)
    return Certificate(
        integral=_integral(law) if whole else None,
        ends={
            f"{name} at {end:g}": found
            for end in (0.0, 1.0)
            if end in law.pool.strengths
            for name, found in _ends(law, end).items()
        },
        slope=max((_slope_residual(law, strength) for strength in strengths), default=0.0),
    )


def _integral(law: ResponseLaw) -> Estimate:
    places = np.linspace(0, 1, PLACES)
    values = np.stack([law.at(place).figures["log_ratio"] for place in places])
    weights = np.full(PLACES, 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    return estimate(weights @ values / (3 * (PLACES - 1)), law.pool.prompts)


def _ends(law: ResponseLaw, end: float) -> dict[str, Estimate]:
    """Returns how far the pooled means are from those of the model's own completions."""
    pool = law.pool
    figures = law.at(end).figures
    own = (pool.drawn_at == end) & law.member
    found = {}
    for name, values in {**pool.values, "log_ratio": pool.log_ratio}.items():
        known = own & ~np.isnan(values)
        counts = pool.sums(known.astype(float))
        there = counts > 0
        if there.any():
            plain = pool.sums(np.where(known, values, 0.0))[there] / counts[there]
            kept = [prompt for prompt, is_there in zip(pool.prompts, there, strict=True) if is_there]
            found[name] = estimate(figures[name][there] - plain, kept)
    return found


def _slope_residual(law: ResponseLaw, strength: float) -> float:
    before, here, after = (law.at(strength + step) for step in (-STEP, 0.0, STEP))
    found = [
        abs(np.nanmean(after.figures[name] - before.figures[name]) / (2 * STEP) - np.nanmean(slope))
        for name, slope in here.slopes.items()
    ]
    return float(max(found))
