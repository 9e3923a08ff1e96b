"""Draws from the response-level optimum of a pair whose normalizer is known: sums over responses of any length."""

import numpy as np
import pytest

from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.exact.particles import Particles, log_mean
from dera_jax.exact.rejection import Rejection
from tests.support.bigrams import Bigrams

LONGEST = 96
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=3)


@pytest.fixture(scope="module")
def pair(toy):
    return Bigrams(toy)


def mean_and_error(values):
    return np.mean(values), np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_acceptance_is_the_normalizer_and_lengths_are_those_of_the_optimum(pair, limit_means):
    ended, cut = pair.sums(pair.weights(0.5), LONGEST)
    z = ended.sum() + (cut if limit_means == "absorb" else 0)
    found = list(Rejection(limit_means=limit_means)(pair.policies, pair.requests(0.5, 400), CONFIG, 128))
    tries = sum(done.exact.tries for done in found)
    print(f"Z = {z:.3f}, {len(found)} of {tries} accepted")
    assert 0.05 < z < 0.7 and abs(len(found) / tries - z) < 4 * np.sqrt(z * (1 - z) / tries)
    places = np.arange(1, LONGEST + 1)
    wanted = (ended @ places + (cut * LONGEST if limit_means == "absorb" else 0)) / z
    mean, error = mean_and_error([len(done.tokens) for done in found])
    assert abs(mean - wanted) < 4 * error
    # Given up early, a try costs fewer tokens than a whole response of the mixture.
    ended, cut = pair.sums(pair.mixture(0.5), LONGEST)
    whole = tries * (ended @ places + cut * LONGEST)
    share = sum(done.exact.tokens for done in found) / whole
    print(f"{share:.2f} of the tokens of whole tries")
    assert share < 0.65


@pytest.mark.slow  # 6 400 completions on each side
def test_populations_estimate_the_normalizer_with_less_spread_than_weights_alone(toy):
    pair, lambda_, n = Bigrams(toy, apart=0.3), 2.0, 64
    ended, _ = pair.sums(pair.weights(lambda_), LONGEST)
    z = ended.sum()
    found = list(Particles(n=n)(pair.policies, pair.requests(lambda_, 100), CONFIG, 4 * n))
    logs = np.array([-np.inf if c.exact.log_weight is None else c.exact.log_weight for c in found])
    mean, error = mean_and_error(np.exp(logs - np.log(z)))
    assert abs(mean - 1) < 4 * error
    # Importance sampling with as many completions.
    plain = list(complete_unshared(pair.policies, pair.requests(lambda_, 1600), CONFIG, 256))
    weights = np.array(
        [c.log_normalizers.sum() if c.finish_reason == "eos" else -np.inf for c in plain], np.float64
    )
    groups = np.random.default_rng(0).choice(weights, size=(400, n))
    alone = np.array([log_mean(group) for group in groups])
    ratio = logs.std() / alone.std()
    print(
        f"log Z = {np.log(z):.2f}; spread {logs.std():.2f} for {alone.std():.2f} of weights alone: {ratio:.2f}"
    )
    assert ratio < 0.65
