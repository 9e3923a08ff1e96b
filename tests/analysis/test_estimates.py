"""Ratios of sums over prompts."""

import math

import numpy as np
import pytest

from dera_jax.analysis.estimates import ratio


def test_a_ratio_of_sums_and_its_interval():
    """Of proportional values it is the factor, without an interval of any length; else it covers, in any order."""
    rng = np.random.default_rng(0)
    below = rng.uniform(1.0, 2.0, size=40)
    exact = ratio(-0.5 * below, below)
    assert (exact.mean, exact.low, exact.high) == pytest.approx((-0.5, -0.5, -0.5))
    above = 0.3 * below + rng.normal(scale=0.2, size=40)
    found, turned = ratio(above, below), ratio(above[::-1], below[::-1])
    assert found.mean == pytest.approx(above.sum() / below.sum()) and found.low < found.mean < found.high
    # By the delta method: Var(Σ a / Σ b) = Σ (a − r b)² / (Σ b)².
    error = np.sqrt(np.sum((above - found.mean * below) ** 2)) / below.sum()
    assert found.half_width == pytest.approx(1.96 * error, rel=0.15)
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))
    assert math.isnan(ratio(above, -below).mean) and math.isnan(ratio(above[:5], below[:5]).low)
