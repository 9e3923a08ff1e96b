"""From drawn tokens back to λ, temperature, top-k and top-p: against scipy, by hand, and on known laws."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax

from dera_jax.analysis import decoding_law
from dera_jax.analysis.decoding_law import MASSES, Kept, find_law
from dera_jax.analysis.newton import covariance, maximize
from dera_jax.scoring.drawn import Drawn
from tests.support.drawn_tokens import draw_tokens, kept_probabilities

ALL = Kept(np.array([1.0, 0.5]))


def test_newton_finds_what_scipy_finds():
    places = draw_tokens(0, 500, 0.7, 0.8)
    reference, aligned = (each.astype(np.float64) for each in places.given)

    def loss(theta):
        logprobs = log_softmax(theta[0] * reference + theta[1] * (aligned - reference), axis=1)
        return -logprobs[np.arange(500), places.tokens].sum()

    expected = optimize.minimize(
        loss, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-7}
    )
    theta, score = maximize(Drawn(places).scorer(ALL), np.array([1.0, 1.0]), np.eye(2))
    np.testing.assert_allclose(theta, expected.x, atol=2e-4)
    assert score.value == pytest.approx(-expected.fun, abs=1e-3)
    step = 1e-3
    for one in range(2):
        there = [loss(theta + sign * step * np.eye(2)[one]) for sign in (1, 0, -1)]
        second = (there[0] - 2 * there[1] + there[2]) / step**2
        assert score.information[one, one] == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (7, None), (None, 0.8), (7, 0.8)])
def test_what_sets_hold_by_hand(top_k, top_p):
    places = draw_tokens(1, 60, 0.7, 1.0)
    theta = np.array([1.0, 0.7])
    reference, aligned = (each.astype(np.float64) for each in places.given)
    mixed = reference + 0.7 * (aligned - reference)
    whole = kept_probabilities(mixed)
    by_k, by_p = Drawn(places).counts(Kept(theta, top_k, top_p))
    assert len(by_k.outside) == 81 and len(by_p.outside) == len(MASSES)

    def held(k, p):
        kept = kept_probabilities(mixed, k, p) > 0
        inside = kept[np.arange(60), places.tokens]
        return np.log((whole * kept).sum(1))[inside].sum(), (~inside).sum()

    for k in (1, 2, 9, 40, None):
        place = -1 if k is None else k - 1
        log_mass, outside = held(k, top_p)
        assert by_k.log_mass[place] == pytest.approx(log_mass, abs=1e-3) and by_k.outside[place] == outside
    for p in (0.2005, 0.5, 0.803, 0.95, None):
        place = -1 if p is None else int(np.argmin(abs(MASSES - p)))
        log_mass, outside = held(top_k, None if p is None else MASSES[place])
        assert by_p.log_mass[place] == pytest.approx(log_mass, abs=1e-3) and by_p.outside[place] == outside


def test_the_kept_words_are_those_of_the_likelihood():
    places = draw_tokens(2, 200, 0.4, 0.9, top_k=6)
    theta = np.array([1 / 0.9, 0.4 / 0.9])
    reference, aligned = (each.astype(np.float64) for each in places.given)
    kept = kept_probabilities(theta[0] * reference + theta[1] * (aligned - reference), 6)
    expected = np.log(kept[np.arange(200), places.tokens]).sum()
    assert Drawn(places).scorer(Kept(theta, 6))(theta).value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("lambda_", "temperature", "top_k", "top_p"),
    [(0.7, 0.8, None, None), (0.5, 1.0, None, 0.9), (1.3, 0.7, 6, None)],
)
def test_settings_are_found(lambda_, temperature, top_k, top_p):
    law = find_law(Drawn(draw_tokens(3, 20_000, lambda_, temperature, top_k, top_p, vocab=40)))
    assert law.divergence >= 0.08
    assert abs(law.lambda_.value - lambda_) <= 0.02 + 0.02 * (top_k is not None or top_p is not None)
    assert law.lambda_.low <= lambda_ <= law.lambda_.high
    assert law.temperature.value == pytest.approx(temperature, rel=0.02)
    assert law.top_k.value == top_k
    assert top_k is None or law.top_k.low == law.top_k.high == top_k
    assert (law.top_p.value is None) == (top_p is None)
    if top_p is not None:
        assert abs(law.top_p.value - top_p) <= 0.01 and law.top_p.low <= top_p <= law.top_p.high


def test_intervals_cover():
    """Of 100 laws of 1000 tokens: 95 % on average, fewer than 88 once in a thousand times."""
    inside = np.zeros(2)
    for seed in range(100):
        drawn = Drawn(draw_tokens(100 + seed, 1000, 0.6, 0.9, vocab=30))
        theta, score = maximize(drawn.scorer(ALL), np.array([1.0, 1.0]), np.eye(2))
        spread = covariance(score, np.eye(2), drawn.groups)
        found = decoding_law.intervals(theta, spread, 50)
        inside += [each.low <= true <= each.high for each, true in zip(found, (0.6, 0.9), strict=True)]
    assert (inside >= 88).all() and (inside <= 100).all()


def test_greedy_tokens_are_told():
    law = find_law(Drawn(draw_tokens(4, 2000, 0.6, 0.0)))
    assert law.greedy and law.temperature.high < 0.05 and law.top_k is None
    assert law.lambda_.low <= 0.6 <= law.lambda_.high and law.lambda_.high - law.lambda_.low < 0.05


def test_a_known_temperature_is_kept():
    law = find_law(Drawn(draw_tokens(5, 3000, 0.6, 0.8)), temperature=0.8)
    assert law.temperature == pytest.approx((0.8, 0.8, 0.8))
    assert law.lambda_.low <= 0.6 <= law.lambda_.high


def test_models_that_are_alike_do_not_tell_the_strength():
    laws = [find_law(Drawn(draw_tokens(200 + seed, 1000, 0.6, 0.8, apart=0.01))) for seed in range(20)]
    assert all(law.lambda_ is None for law in laws)
    # Of 95 % intervals; fewer than 16 of 20 once in 400 times.
    assert sum(law.temperature.low <= 0.8 <= law.temperature.high for law in laws) >= 16


def test_logits_that_are_not_finite_are_refused():
    places = draw_tokens(7, 50, 0.6, 0.8)
    places.given[1][3, 4] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        find_law(Drawn(places))
