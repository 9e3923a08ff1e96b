"""Everything a tiny pair can say is listed, and the sampler is held against the exact probabilities."""

import numpy as np
import pytest
from scipy import stats

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from tests.support.toy import all_completions, exact_logprobs, tiny_policy

PROMPT = (1, 2, 0, 2)
LONGEST = 3
SAMPLES = 6000


class Exact:
    """Probabilities of every completion under the per-token and the sequence-level mixture."""

    def __init__(self, policies, lambda_):
        self.completions = all_completions(4, LONGEST)
        weights = np.array([1 - sum(lambda_), *lambda_])
        each = [exact_logprobs(policy, PROMPT, self.completions) for policy in policies]
        token, sequence, self.kl = [], [], []
        for row, completion in enumerate(self.completions):
            unnormalized = sum(w * logprobs[row] for w, logprobs in zip(weights, each, strict=True))
            mixture = unnormalized - np.log(np.exp(unnormalized).sum(-1, keepdims=True))
            steps = np.arange(len(completion))
            token.append(mixture[steps, completion].sum())
            sequence.append(unnormalized[steps, completion].sum())
            self.kl.append((mixture[steps, completion] - each[0][row][steps, completion]).sum())
        self.token = np.exp(token)
        self.sequence = np.exp(sequence) / np.exp(sequence).sum()

    def standard_error(self, values: np.ndarray) -> float:
        """The asymptotic standard error of the self-normalized mean of `values`, one per completion."""
        deviations = values - self.sequence @ values
        return float(np.sqrt(np.sum(self.sequence**2 / self.token * deviations**2) / SAMPLES))


def draw(policies, lambda_):
    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT,) * len(policies))
    cells = [Request(prompt, sample, lambda_) for sample in range(SAMPLES)]
    return list(complete(policies, cells, DecodeConfig(max_new_tokens=LONGEST, seed=5), rows=500))


def slow(lambda_):
    return pytest.param(lambda_, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[(0.4,), slow((2.0,)), slow((-0.5,)), slow((0.5, 0.8))], ids=str)
def drawn(request, toy):
    lambda_ = request.param
    policies = [tiny_policy(toy, seed) for seed in range(1 + len(lambda_))]
    return Exact(policies, lambda_), draw(policies, lambda_)


def test_frequencies_are_those_of_the_per_token_mixture(drawn):
    exact, completions = drawn
    np.testing.assert_allclose(exact.token.sum(), 1, atol=1e-6)
    number = {completion: i for i, completion in enumerate(exact.completions)}
    counts = np.bincount([number[tuple(c.tokens)] for c in completions], minlength=len(number))
    expected = exact.token * SAMPLES
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_divergence_is_the_exact_one_on_average(drawn):
    exact, completions = drawn
    figures = np.array([c.kl_to_reference.sum() for c in completions])
    error = figures.std() / np.sqrt(SAMPLES)
    assert abs(figures.mean() - exact.token @ exact.kl) < 4 * error + 1e-6


def test_normalizers_turn_the_samples_into_the_sequence_level_mixture(drawn):
    """Eq. 5 from Eq. 6: self-normalized weights Π zₜ, for the probability of every completion."""
    exact, completions = drawn
    log_weights = np.array([c.log_normalizers.sum() for c in completions])
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    for completion, probability in zip(exact.completions, exact.sequence, strict=True):
        hit = np.array([tuple(c.tokens) == completion for c in completions])
        here = np.array([other == completion for other in exact.completions])
        assert abs(weights @ hit - probability) < 4.5 * exact.standard_error(here) + 1e-5, completion
    length = np.array([len(c.tokens) for c in completions])
    lengths = np.array(list(map(len, exact.completions)))
    error = exact.standard_error(lengths)
    print(
        f"mean length: exact {exact.sequence @ lengths:.4f}, weighted {weights @ length:.4f} ± {error:.4f}, "
        f"unweighted {length.mean():.4f}"
    )
    assert abs(weights @ length - exact.sequence @ lengths) < 4 * error + 1e-5


def test_figures_of_each_completion_are_exact(drawn):
    exact, completions = drawn
    number = {completion: i for i, completion in enumerate(exact.completions)}
    for c in completions[:200]:
        assert np.exp(c.logprobs.sum()) == pytest.approx(exact.token[number[tuple(c.tokens)]], rel=1e-4)
        np.testing.assert_array_equal(c.logprobs, c.sampling_logprobs)
