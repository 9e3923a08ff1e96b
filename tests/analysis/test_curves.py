"""Curves from pooled completions, against sums over all responses of a pair whose next word depends on the last."""

import numpy as np
import pytest

from dera_jax.analysis.curves.bounds import bounds
from dera_jax.analysis.curves.certificate import certify
from dera_jax.analysis.curves.curve import make_curve
from dera_jax.analysis.curves.laws import ResponseLaw, TokenLaw
from dera_jax.analysis.curves.pool import pool_of
from tests.support.bigrams import Bigrams

LONGEST, STRENGTHS = 64, (0.0, 0.5, 1.0)
GRID = np.linspace(0, 1, 11)


@pytest.fixture(scope="module")
def pair(toy):
    return Bigrams(toy)


@pytest.fixture(scope="module")
def rows(pair):
    return [row for n, s in enumerate(STRENGTHS) for row in pair.rows(s, 40, 200, LONGEST, n)]


def pool_with(pair, rows, strengths=STRENGTHS):
    known = {s: pair.log_normalizers(rows, s) for s in strengths}
    return pool_of(rows, {s: each[0] for s, each in known.items()}, {s: each[1] for s, each in known.items()})


def error(found):
    """The standard error of an estimate, from its 95 % interval."""
    return found.half_width / 1.96


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_a_curve_is_that_of_all_responses(pair, rows, limit_means):
    curve = make_curve(ResponseLaw(pool_with(pair, rows), limit_means), GRID)
    for point in curve.points:
        exact = pair.means(pair.weights(point.lambda_), LONGEST, limit_means)
        print(
            f"{point.lambda_:.1f} {point.effective:.0%}",
            {n: (point.figures[n].mean, exact[n]) for n in exact},
        )
        assert point.drawn and point.effective > 0.35
        for name, value in exact.items():
            # At the ends Z is known but for cut responses, and the pool's is of no spread.
            assert abs(point.figures[name].mean - value) < 4 * error(point.figures[name]) + 2e-3, (
                name,
                point,
            )


def test_per_token_weights_give_the_realigned_policys_own_means(pair, rows):
    curve = make_curve(TokenLaw(pool_with(pair, rows, GRID)), GRID)
    for point in curve.points:
        exact = pair.means(pair.mixture(point.lambda_), LONGEST, "absorb")
        for name in ("length", "short"):
            assert abs(point.figures[name].mean - exact[name]) < 4 * error(point.figures[name]), (name, point)


def test_slopes_are_those_of_the_curve(pair, rows):
    law = ResponseLaw(pool_with(pair, rows), "absorb")
    found = certify(law, [0.1, 0.5, 0.9])
    print(found)
    assert found.slope < 1e-3
    assert abs(found.integral.mean) < 4 * error(found.integral)
    for name, each in found.ends.items():
        assert abs(each.mean) < 4 * error(each) + 1e-3, name


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_bounds_hold_log_z_between_them(pair, rows, limit_means):
    for bound in bounds(ResponseLaw(pool_with(pair, rows), limit_means)):
        log_z = pair.means(pair.weights(bound.lambda_), LONGEST, limit_means)["log_z"]
        print(bound, log_z)
        assert bound.lower.mean < log_z + 3 * error(bound.lower)
        assert bound.upper.mean > log_z - 3 * error(bound.upper) - 1e-6  # rounding where Z is 1
        assert bound.upper.mean - bound.lower.mean < 0.05
