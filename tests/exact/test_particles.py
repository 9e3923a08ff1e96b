"""Populations of a tiny pair, all of whose completions are listed."""

from dataclasses import replace

import numpy as np
import pytest

from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.exact.particles import ParticleBatch, Particles, effective_size, log_mean, systematic
from tests.support.response_law import ResponseLaw, requests
from tests.support.toy import tiny_policy

LONGEST, LAMBDA = 4, 3.0
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=5)


@pytest.fixture(scope="module")
def policies(toy):
    return [tiny_policy(toy, seed, scale=1.0) for seed in range(2)]


@pytest.fixture(scope="module")
def law(policies):
    return ResponseLaw(policies, LAMBDA, LONGEST)


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_the_weights_are_unbiased_and_the_law_is_near(policies, law, limit_means):
    expected, z = law.probabilities(limit_means)
    draw = Particles(n=16, every=1, limit_means=limit_means)
    found = list(draw(policies, requests(LAMBDA, 600), CONFIG, 128))
    weights = np.array([np.exp(c.exact.log_weight) if c.exact.log_weight is not None else 0 for c in found])
    assert abs(weights.mean() - z) < 4 * weights.std() / np.sqrt(len(weights))
    # Draws of several populations together, each with its weight: tends to the law itself.
    share = np.array([weights[[tuple(c.tokens) == y for c in found]].sum() for y in law.completions])
    assert np.abs(share / share.sum() - expected).sum() / 2 < 0.1
    assert any(c.exact.resamplings for c in found)
    assert all(1 <= c.exact.ancestors <= 16 and 0 <= c.exact.effective <= 16.001 for c in found)
    plain = np.abs(
        law.counts(complete_unshared(policies, requests(LAMBDA, 600), CONFIG, 128)) / 600 - expected
    )
    assert plain.sum() / 2 > 0.15


def test_drawing_again_spreads_the_estimate_less(policies, law):
    def spread(every):
        draw = Particles(n=32, every=every)
        found = draw(policies, requests(LAMBDA, 100), CONFIG, 128)
        return np.std([c.exact.log_weight for c in found])

    assert spread(1) < spread(LONGEST)


def test_copies_of_a_row_go_on_with_noise_of_their_own(policies, monkeypatch):
    """Those that go on from one row after a resampling do not all say the same."""
    families = []
    chosen = ParticleBatch._chosen

    def noted(self, group, ended, weights):
        if group.resamplings:
            said = {}
            for each in ended:
                said.setdefault(each.ancestor, []).append(tuple(each.completion.tokens))
            families.extend(each for each in said.values() if len(each) > 2)
        return chosen(self, group, ended, weights)

    monkeypatch.setattr(ParticleBatch, "_chosen", noted)
    config = replace(CONFIG, max_new_tokens=12)
    list(Particles(n=16, every=2, limit_means="absorb")(policies, requests(LAMBDA, 60), config, 64))
    several = [len(set(each)) > 1 for each in families]
    assert len(families) > 10 and sum(several) > 5


def test_neighbours_order_and_rows_change_nothing(policies):
    draw = Particles(n=4, every=2)
    asked = requests(LAMBDA, 3, prompts=3) + requests(0.5, 3, prompts=3)

    def found(given, rows):
        again = [replace(request) for request in given]
        return {c.request.key: (c.tokens, c.exact.resamplings) for c in draw(policies, again, CONFIG, rows)}

    there = found(asked, 8)
    assert there.keys() == {request.key for request in asked}
    for given, rows in ((asked[::-1], 8), (asked[::5], 8), (asked, 4), (asked, 60)):
        assert all(there[key] == each for key, each in found(given, rows).items())


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_the_models_themselves_have_weight_one(policies, lambda_):
    for done in Particles(n=4, limit_means="absorb")(policies, requests(lambda_, 10), CONFIG, 16):
        assert done.exact.log_weight == pytest.approx(0, abs=1e-5) and done.exact.resamplings == 0
        assert done.exact.effective == pytest.approx(4, abs=1e-4) and done.exact.ancestors == 4


def test_a_population_of_which_none_has_ended_has_no_weight(policies):
    found = list(Particles(n=2)(policies, requests(LAMBDA, 40), replace(CONFIG, max_new_tokens=1), 8))
    cut = [done for done in found if done.exact.cut == 2]
    assert cut and all(done.exact.log_weight is None and done.exact.effective == 0 for done in cut)


def test_systematic_draws_are_the_shares_up_to_rounding():
    rng = np.random.default_rng(0)
    for _ in range(50):
        log_weights = rng.normal(size=20) * 2
        shares = np.exp(log_weights) / np.exp(log_weights).sum()
        counts = np.bincount(systematic(log_weights, rng.random()), minlength=20)
        assert counts.sum() == 20 and np.all(np.abs(counts - 20 * shares) < 1)
    every = [np.bincount(systematic(log_weights, (k + 0.5) / 400), minlength=20) for k in range(400)]
    np.testing.assert_allclose(np.mean(every, axis=0), 20 * shares, atol=0.01)


def test_sizes_and_means():
    assert effective_size(np.zeros(5)) == pytest.approx(5) and effective_size(np.full(3, -np.inf)) == 0
    assert effective_size(np.array([1000.0, 0.0])) == pytest.approx(1)
    assert (
        log_mean(np.log([1.0, 3.0])) == pytest.approx(np.log(2)) and log_mean(np.full(3, -np.inf)) == -np.inf
    )
    assert effective_size(np.log([1.0, 3.0])) == pytest.approx(16 / 10)
