"""Power means and the mixtures of other divergences, against their definitions in float64."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp

from tests.support.ruled import at_once, logprobs_of, nats, random_logits

LOGITS = random_logits()
THREE = random_logits(models=3, seed=1)
AVERAGES = ("power", "power:p=-1", "alpha-divergence", "alpha-divergence:alpha=0.1", "jensen-shannon")


def test_a_small_exponent_is_the_linear_mixture():
    close = random_logits(scale=0.3)
    for p in (-1e-3, 1e-3):
        found, linear = at_once(f"power:p={p}", close, 0.3), at_once("linear", close, 0.3)
        assert np.abs(np.exp(found) - np.exp(linear)).max() < 1e-4
    np.testing.assert_allclose(at_once("power:p=0", LOGITS, 0.3), at_once("linear", LOGITS, 0.3), atol=1e-5)


def test_exponent_one_averages_probabilities():
    of_models = np.exp(logprobs_of(THREE))
    average = 0.5 * of_models[0] + 0.2 * of_models[1] + 0.3 * of_models[2]
    np.testing.assert_allclose(np.exp(at_once("power:p=1", THREE, 0.2, 0.3)), average, atol=1e-6)


@pytest.mark.parametrize("p", [-100, -7, -1, -0.01, 0.02, 0.7, 3, 100])
def test_power_means(p):
    of_models = logprobs_of(LOGITS)
    wanted = logsumexp(p * of_models, axis=0, b=np.array([0.7, 0.3])[:, None, None]) / p
    wanted -= logsumexp(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(at_once(f"power:p={p}", LOGITS, 0.3), wanted, atol=1e-5, rtol=1e-5)


def test_the_extremes_are_where_exponents_lead():
    for name, p in (("minimum", -100), ("maximum", 100)):
        assert nats(at_once(name, LOGITS, 0.5), at_once(f"power:p={p}", LOGITS, 0.5)).max() < 2e-3


def solved(inverse, mean, reference, low, high):
    """Returns the log-probabilities π_ref f′⁻¹(mean − c) for the c at which they sum to 1, row by row."""
    rows = []
    for own, of_reference in zip(mean, reference, strict=True):

        def excess(c, own=own, of_reference=of_reference):
            return (np.exp(of_reference) * inverse(own - c)).sum() - 1

        rows.append(of_reference + np.log(inverse(own - brentq(excess, low(own), high, xtol=1e-14))))
    return np.array(rows)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_alpha_divergences(alpha):
    of_models = logprobs_of(THREE)
    ratios = np.exp(of_models - of_models[0])
    mean = np.tensordot([0.5, 0.2, 0.3], (1 - ratios**-alpha) / alpha, axes=1)

    def inverse(u):
        return (1 - alpha * u) ** (-1 / alpha)

    wanted = solved(inverse, mean, of_models[0], lambda own: own.max() - 1 / alpha + 1e-12, 1.0)
    found = at_once(f"alpha-divergence:alpha={alpha}", THREE, 0.2, 0.3)
    np.testing.assert_allclose(found, wanted, atol=3e-5)


def test_jensen_shannon():
    of_models = logprobs_of(THREE)
    ratios = np.exp(of_models - of_models[0])
    mean = np.tensordot([0.5, 0.2, 0.3], np.log(2 * ratios / (1 + ratios)), axes=1)
    wanted = solved(
        lambda u: 1 / (2 * np.exp(-u) - 1),
        mean,
        of_models[0],
        lambda own: own.max() - np.log(2) + 1e-12,
        1.0,
    )
    np.testing.assert_allclose(at_once("jensen-shannon", THREE, 0.2, 0.3), wanted, atol=3e-5)


@pytest.mark.parametrize("spec", [*AVERAGES, "minimum", "maximum", "linear", "probabilities"])
def test_the_ends_are_the_models(spec):
    for strength in (0, 1):
        np.testing.assert_allclose(at_once(spec, LOGITS, strength), logprobs_of(LOGITS)[strength], atol=2e-5)


@pytest.mark.parametrize("spec", [*AVERAGES, "minimum", "maximum", "probabilities"])
def test_models_far_apart_stay_finite(spec):
    """Logits of a real model reach from −30 to 30; words that one model all but excludes are the hard ones."""
    far = random_logits(scale=20.0)
    for strength in (0, 1e-6, 0.5, 1):
        found = at_once(spec, far, strength)
        np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("spec", AVERAGES)
def test_one_model_twice_is_that_model(spec):
    twice = LOGITS.at[1].set(LOGITS[0])
    np.testing.assert_allclose(at_once(spec, twice, 0.4), logprobs_of(LOGITS)[0], atol=1e-5)


def test_probabilities_with_weights_of_a_mean_are_that_mean():
    for strength in ((0.3, 0.2), (0.0, 0.6), (0.5, 0.5)):
        found, mean = (at_once(spec, THREE, *strength) for spec in ("probabilities", "power:p=1"))
        np.testing.assert_allclose(found, mean, atol=1e-5)


def test_probabilities_beyond_the_models_are_cut_at_nothing():
    reference, aligned = np.exp(logprobs_of(LOGITS))
    for strength in (3.0, -0.5, 40.0):
        left = reference + strength * (aligned - reference)
        wanted = np.maximum(left, 0) / np.maximum(left, 0).sum(axis=-1, keepdims=True)
        found = np.exp(at_once("probabilities", LOGITS, strength))
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, abs(strength)))
        assert (left < -1e-6).sum() > 0 and found[left < -1e-6].max() == 0


def test_rare_words_keep_their_ratios():
    """Of probabilities that float32 does not have, e^−200 and less."""
    rare = LOGITS.at[:, :, 10:].add(-200.0)
    reference, aligned = logprobs_of(rare)
    wanted = np.logaddexp(np.log(0.4) + reference, np.log(0.6) + aligned)
    np.testing.assert_allclose(at_once("probabilities", rare, 0.6), wanted, rtol=1e-6, atol=1e-4)
