"""The laws of exact draws at sizes that leave little to noise."""

import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding.config import DecodeConfig
from dera_jax.exact.particles import ParticleBatch, Particles
from dera_jax.exact.rejection import Rejection
from tests.support.bigrams import Bigrams
from tests.support.response_law import ResponseLaw, requests
from tests.support.toy import tiny_policy

pytestmark = pytest.mark.slow  # about 20 000 draws each
TRIES = 20_000


def policies_of(toy, scale=2.5):
    return [tiny_policy(toy, seed, scale=scale) for seed in range(2)]


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_rejection_on_a_pair_whose_completions_are_listed(toy, limit_means):
    longest, lambda_ = 4, 0.5
    policies = policies_of(toy)
    law = ResponseLaw(policies, lambda_, longest)
    expected, z = law.probabilities(limit_means)
    config = DecodeConfig(max_new_tokens=longest, seed=11)
    asked = requests(lambda_, round(TRIES * z))
    found = list(Rejection(limit_means=limit_means)(policies, asked, config, 512))
    tries, n = sum(done.exact.tries for done in found), len(found)
    counts, members = law.counts(found), expected > 0
    variation = np.abs(counts / n - expected).sum() / 2
    print(
        f"{n} of {tries} accepted, Z = {z:.4f}; total variation {variation:.4f} of {members.sum()} completions"
    )
    assert abs(n / tries - z) < 4 * np.sqrt(z * (1 - z) / tries)
    assert counts[~members].sum() == 0 and variation <= np.sqrt(members.sum() / n)
    often = expected * n >= 5
    rest = [(~often & members)]
    observed = [*counts[often], *(counts[each].sum() for each in rest if each.any())]
    wanted = [*expected[often] * n, *(expected[each].sum() * n for each in rest if each.any())]
    assert stats.chisquare(observed, wanted).pvalue > 1e-4


def test_rejection_on_a_pair_with_sums_over_responses(toy):
    longest = 96
    pair = Bigrams(toy)
    ended, _ = pair.sums(pair.weights(0.5), longest)
    z = ended.sum()
    config = DecodeConfig(max_new_tokens=longest, seed=12)
    found = list(Rejection()(pair.policies, pair.requests(0.5, round(TRIES * z)), config, 512))
    tries, n = sum(done.exact.tries for done in found), len(found)
    counts = np.bincount([len(done.tokens) for done in found], minlength=longest + 1)[1:]
    variation = np.abs(counts / n - ended / z).sum() / 2
    places = np.arange(1, longest + 1)
    q_ended, q_cut = pair.sums(pair.mixture(0.5), longest)
    share = sum(done.exact.tokens for done in found) / tries / (q_ended @ places + q_cut * longest)
    print(
        f"{n} of {tries} accepted, Z = {z:.4f}; total variation of lengths {variation:.4f}; {share:.2f} of the tokens"
    )
    assert abs(n / tries - z) < 4 * np.sqrt(z * (1 - z) / tries)
    assert variation <= np.sqrt(longest / n) and share <= 0.65
    often = ended / z * n >= 5
    observed, wanted = counts[often], ended[often] / z * n
    pairs = [*zip(observed, wanted, strict=True), (n - observed.sum(), n - wanted.sum())]
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-4


def test_the_weighted_populations_are_the_law(toy, monkeypatch):
    """All that populations of 64 hold at the end, each with its weight."""
    longest, lambda_ = 3, 2.0
    policies = policies_of(toy, scale=1.0)
    law = ResponseLaw(policies, lambda_, longest)
    expected, z = law.probabilities("absorb")
    mass = np.zeros(len(expected))
    number = {completion: n for n, completion in enumerate(law.completions)}
    chosen = ParticleBatch._chosen

    def noted(self, group, ended, weights):
        for each, weight in zip(ended, weights, strict=True):
            mass[number[tuple(each.completion.tokens)]] += np.exp(group.log_z + weight)
        return chosen(self, group, ended, weights)

    monkeypatch.setattr(ParticleBatch, "_chosen", noted)
    config = DecodeConfig(max_new_tokens=longest, seed=13)
    draw = Particles(n=64, every=1, limit_means="absorb")
    found = list(draw(policies, requests(lambda_, 200), config, 512))
    weights = np.exp([done.exact.log_weight for done in found])
    variation = np.abs(mass / mass.sum() - expected).sum() / 2
    print(
        f"Z = {z:.4f}, found {weights.mean():.4f}; total variation {variation:.4f} of {len(expected)} completions"
    )
    assert abs(weights.mean() - z) < 4 * weights.std() / np.sqrt(len(weights))
    assert variation <= 0.03
