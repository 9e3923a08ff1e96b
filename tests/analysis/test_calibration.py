"""Calibration of reward models: laws, and a figure that can be read."""

import numpy as np
import pytest

from dera_jax.analysis.calibration import calibrate, plot_calibration


def drawn(margins, seed=0):
    """Returns margins with the sign that Bradley–Terry gives them."""
    right = np.random.default_rng(seed).random(margins.size) < 1 / (1 + np.exp(-margins))
    return np.where(right, margins, -margins)


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated():
    margins = np.random.default_rng(1).exponential(1.5, size=40_000)
    found = calibrate(drawn(margins))
    assert found.error < 0.01
    assert all(b.accuracy.low - 0.01 < b.confidence < b.accuracy.high + 0.01 for b in found.bins)
    # Ten times the margins: too sure of itself, no more often right.
    loud = calibrate(drawn(margins) * 10)
    assert loud.error > 0.15 and loud.accuracy == found.accuracy and loud.loss > found.loss


def test_no_opinion_is_a_coin():
    found = calibrate([0.0] * 20)
    assert found.accuracy.mean == 0.5 and found.loss == pytest.approx(np.log(2)) and found.error == 0
    with pytest.raises(ValueError, match="found none"):
        calibrate([])


def test_counts_and_figure(tmp_path):
    found = calibrate(np.linspace(-1, 2, 101))
    assert sum(b.count for b in found.bins) == 101 and found.accuracy.mean == pytest.approx(
        67 / 101, abs=0.01
    )
    assert "(101 pairs)" in str(found)
    plot_calibration(found, tmp_path / "c.png", "judge")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
