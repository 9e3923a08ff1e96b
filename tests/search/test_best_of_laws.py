"""Every completion of a tiny pair is listed, and what is chosen among candidates is held against the exact law."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.rewards.registry import Reward
from dera_jax.search.best_of import best_of, best_of_poisson, soft_best_of
from tests.support.toy import all_completions, exact_logprobs, tiny_policy

PROMPT = (1, 2, 0, 2)
LONGEST = 3
LAMBDA = 0.4
SAMPLES = 1200
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=5)
COMPLETIONS = all_completions(4, LONGEST)


def value(tokens):
    """A score of few values, so that there are ties: how often word 1 is said, less the words in all."""
    return 2.0 * tokens.count(1) - len(tokens)


SCORE = Reward("value", lambda seen: [value(list(tokens)) for tokens in seen.whole_tokens])
VALUES = np.array([value(list(completion)) for completion in COMPLETIONS])


@pytest.fixture(scope="module")
def policies(toy):
    return [tiny_policy(toy, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def base(policies):
    """The probability of every completion under the realigned policy."""
    each = [exact_logprobs(policy, PROMPT, COMPLETIONS) for policy in policies]
    found = []
    for row, completion in enumerate(COMPLETIONS):
        mixed = (1 - LAMBDA) * each[0][row] + LAMBDA * each[1][row]
        mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
        found.append(mixed[np.arange(len(completion)), completion].sum())
    return np.exp(found)


def best_law(base, n):
    """P(y) is that of its score's level, F(s)ⁿ − F(s⁻)ⁿ, divided as the candidates divide it: ties are the first's."""
    below = np.array([base[each > VALUES].sum() for each in VALUES])
    level = np.array([base[each == VALUES].sum() for each in VALUES])
    return base / level * ((below + level) ** n - below**n)


def poisson_law(base, mu):
    counts = np.arange(200)
    return sum(w * best_law(base, 1 + k) for k, w in zip(counts, stats.poisson.pmf(counts, mu), strict=True))


def soft_law_of_two(base, beta):
    """Both orders of each pair of candidates."""
    first, second = VALUES[:, None], VALUES[None]
    chosen = 1 / (1 + np.exp((second - first) / beta))
    return 2 * base * (chosen * base[None]).sum(1)


def divergence(law, base):
    there = law > 0
    return float((law[there] * np.log(law[there] / base[there])).sum())


def drawn(policies, draw, samples=SAMPLES):
    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT, PROMPT))
    asked = [Request(prompt, sample, (LAMBDA,)) for sample in range(samples)]
    return list(draw(policies, asked, CONFIG, 500))


def counts_of(completions):
    number = {completion: i for i, completion in enumerate(COMPLETIONS)}
    return np.bincount([number[tuple(c.tokens)] for c in completions], minlength=len(number))


def assert_follows(completions, law):
    observed, expected = counts_of(completions), law * len(completions)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def assert_follows_not(completions, law):
    with pytest.raises(AssertionError):
        assert_follows(completions, law)


@pytest.mark.parametrize("n", [2, 5])
def test_best_of_n_has_its_law(policies, base, n):
    law = best_law(base, n)
    np.testing.assert_allclose(law.sum(), 1, atol=1e-6)
    completions = drawn(policies, best_of(n, SCORE))
    assert_follows(completions, law)
    assert_follows_not(completions, base)
    for c in completions[:100]:
        assert c.search.candidates == n and c.search.score == value(c.tokens) >= c.search.runner_up


@pytest.mark.parametrize("n", [1, 2, 3, 8, 100, 10**6])
def test_its_divergence_is_below_the_bound(base, n):
    found = divergence(best_law(base, n), base)
    assert -1e-7 < found <= np.log(n) - (n - 1) / n + 1e-6
    if n > 1:
        assert found > 1e-3


@pytest.mark.parametrize("mu", [0.7, 3.0])
def test_best_of_poisson_has_its_law(policies, base, mu):
    law = poisson_law(base, mu)
    np.testing.assert_allclose(law.sum(), 1, atol=1e-6)
    completions = drawn(policies, best_of_poisson(mu, SCORE))
    assert_follows(completions, law)
    counts = np.array([c.search.candidates for c in completions])
    assert abs(counts.mean() - 1 - mu) < 4.5 * np.sqrt(mu / len(counts))
    scores = np.array([c.search.score for c in completions])
    assert abs(scores.mean() - law @ VALUES) < 4.5 * scores.std() / np.sqrt(len(scores))
    bound = stats.poisson.expect(lambda k: np.log(k + 1) - k / (k + 1), (mu,))
    assert 1e-3 < divergence(law, base) <= bound


def tilted(base, values, mean):
    """Returns base · exp(β · value), normalized, with that mean of the values: nothing else with it is as near."""
    low, high = 0.0, 1e3
    for _ in range(200):
        beta = (low + high) / 2
        law = base * np.exp(beta * (values - values.max()))
        law /= law.sum()
        low, high = (beta, high) if law @ values < mean else (low, beta)
    return law


@pytest.mark.parametrize(
    ("listed", "mu"),
    [(True, 0.25), (True, 1.0), (True, 3.0), *((False, mu) for mu in (0.25, 1.0, 2.0, 3.0, 10.0, 40.0))],
)
def test_best_of_poisson_is_next_to_the_optimal_tilt(base, listed, mu):
    """For the reward that is the score's quantile: at an equal mean of it, the optimum is hardly nearer to the base.

    The completions that are listed, ranked in some order without ties, and many, all equally probable. Where one
    completion has more than half of the probability, as among the listed, larger μ lose more.
    """
    base = base / base.sum() if listed else np.full(4000, 1 / 4000)
    base = np.random.default_rng(1).permutation(base)
    top = np.cumsum(base)
    law = sum(
        weight * (top ** (1 + k) - (top - base) ** (1 + k))
        for k, weight in enumerate(stats.poisson.pmf(np.arange(400), mu))
    )
    np.testing.assert_allclose(law.sum(), 1, atol=1e-9)
    quantile = top - base / 2
    optimum = tilted(base, quantile, law @ quantile)
    np.testing.assert_allclose(optimum @ quantile, law @ quantile, atol=1e-9)
    gap = divergence(law, base) - divergence(optimum, base)
    print(f"mu = {mu:g}: {divergence(law, base):.4f} nats, {gap:.1e} more than the optimum")
    assert -1e-9 < gap <= 8e-4


@pytest.mark.parametrize("beta", [0.8, 2.0])
def test_soft_best_of_two_has_its_law(policies, base, beta):
    law = soft_law_of_two(base, beta)
    np.testing.assert_allclose(law.sum(), 1, atol=1e-6)
    completions = drawn(policies, soft_best_of(2, beta, SCORE))
    assert_follows(completions, law)
    assert_follows_not(completions, base)
    assert_follows_not(completions, best_law(base, 2))


def same(one, other):
    arrays = ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers")
    assert one.request is other.request or one.request == other.request
    assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
    for name in arrays:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("draw", [best_of(1, SCORE), soft_best_of(1, 0.5, SCORE)], ids=lambda d: d.name)
def test_one_candidate_is_the_plain_draw(policies, draw):
    plain = {c.request.key: c for c in drawn(policies, complete, 60)}
    for chosen in drawn(policies, draw, 60):
        same(chosen, plain[chosen.request.key])
        assert chosen.search.candidates == 1 and chosen.search.runner_up is None


@pytest.mark.parametrize(
    "draw",
    [best_of(4, SCORE), best_of_poisson(2.0, SCORE), soft_best_of(4, 1.0, SCORE)],
    ids=lambda draw: draw.name,
)
def test_neighbours_order_and_rows_change_nothing(policies, draw):
    prompts = [EncodedPrompt(Prompt(number, "x"), ((1, 2, number),) * 2) for number in range(3)]
    asked = [Request(prompt, s, (x,)) for prompt in prompts for s in range(4) for x in (0.0, 0.5, 2.0)]

    def found(requests, rows, draw=draw):
        again = [replace(request) for request in requests]
        return {c.request.key: c for c in draw(policies, again, CONFIG, rows)}

    there = found(asked, 8)
    assert there.keys() == {request.key for request in asked}
    for requests, rows in ((asked[::-1], 8), (asked[::5], 8), (asked, 3)):
        for key, completion in found(requests, rows).items():
            assert completion.tokens == there[key].tokens and completion.search == there[key].search

    def shuffled(policies, requests, *rest):
        order = np.random.default_rng(3).permutation(len(requests))
        yield from complete(policies, [requests[i] for i in order], *rest)

    for key, completion in found(asked, 8, replace(draw, plain=shuffled)).items():
        assert completion.tokens == there[key].tokens and completion.search == there[key].search


def test_strengths_share_what_is_no_completion_s_own(policies):
    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT, PROMPT))
    asked = [Request(prompt, sample, (x,)) for sample in range(40) for x in (0.0, 1.0)]
    counts = {}
    for done in best_of_poisson(2.0, SCORE)(policies, asked, CONFIG, 16):
        counts.setdefault(done.request.sample, set()).add(done.search.candidates)
    assert all(len(each) == 1 for each in counts.values()) and len(set.union(*counts.values())) > 3


def test_of_equals_the_first_is_taken(policies):
    draw = best_of(5, Reward("equal", lambda seen: [1.0] * len(seen.completions)))
    plain = {c.request.key: c.tokens for c in drawn(policies, complete, 40)}
    assert {c.request.key: c.tokens for c in drawn(policies, draw, 40)} == plain
