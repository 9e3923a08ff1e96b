"""Chains of a tiny pair, all of whose completions are listed."""

from dataclasses import replace

import numpy as np
import pytest

from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.exact.metropolis import Metropolis, log_acceptance
from tests.support.response_law import PROMPT, ResponseLaw, requests
from tests.support.toy import exact_logprobs, tiny_policy

LONGEST, LAMBDA = 4, 2.0
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=5)


@pytest.fixture(scope="module")
def policies(toy):
    return [tiny_policy(toy, seed, scale=1.0) for seed in range(2)]


@pytest.fixture(scope="module")
def law(policies):
    return ResponseLaw(policies, LAMBDA, LONGEST)


def kernel(policies, law, acceptance):
    """The chain's transition matrix over all completions."""
    each = [exact_logprobs(policy, PROMPT, law.completions) for policy in policies]
    count = len(law.completions)
    matrix = np.zeros((count, count))
    steps = []
    for row, y in enumerate(law.completions):
        mixed = (1 - LAMBDA) * each[0][row] + LAMBDA * each[1][row]
        log_z = np.log(np.exp(mixed).sum(-1))
        steps.append((mixed[np.arange(len(y)), y] - log_z, log_z))
    for i, y in enumerate(law.completions):
        for j, other in enumerate(law.completions):
            for place in range(min(len(y), len(other))):
                if y[:place] == other[:place]:
                    proposed = np.exp(steps[j][0][place:].sum()) / len(y)
                    matrix[i, j] += proposed * np.exp(
                        acceptance(steps[i][1][place:], steps[j][1][place:], place)
                    )
    return matrix + np.diag(1 - matrix.sum(1))


def test_the_law_is_stationary(policies, law):
    expected, _ = law.probabilities("absorb")
    matrix = kernel(policies, law, log_acceptance)
    assert matrix.min() > -1e-9
    np.testing.assert_allclose(expected @ matrix, expected, atol=1e-6)


def test_without_the_lengths_it_is_not(policies, law):
    expected, _ = law.probabilities("absorb")
    matrix = kernel(policies, law, lambda now, new, place: min(0.0, new.sum() - now.sum()))
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    assert np.abs(stationary / stationary.sum() - expected).sum() / 2 > 0.01


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_chains_tend_to_the_law(policies, law, limit_means):
    expected, _ = law.probabilities(limit_means)
    found = list(Metropolis(n=20, limit_means=limit_means)(policies, requests(LAMBDA, 400), CONFIG, 200))
    apart = np.abs(law.counts(found) / 400 - expected).sum() / 2
    plain = law.counts(complete_unshared(policies, requests(LAMBDA, 400), CONFIG, 200)) / 400
    print(f"{apart:.3f} from the law, plain {np.abs(plain - expected).sum() / 2:.3f}")
    assert apart < min(0.15, np.abs(plain - expected).sum() / 2)
    assert all(c.exact.steps == 20 and 0 <= c.exact.moves <= 20 for c in found)
    for done in found[:50]:
        # What is spliced together has the figures of the whole.
        row = law.completions.index(tuple(done.tokens))
        assert done.log_normalizers.sum() == pytest.approx(law.log_z[row], abs=1e-3)
        assert done.model_logprobs[:, 0].sum() == pytest.approx(law.reference[row], abs=1e-3)


def test_order_and_rows_change_nothing(policies):
    draw, asked = Metropolis(n=3), requests(LAMBDA, 3, prompts=3) + requests(0.5, 2, prompts=3)

    def found(given, rows):
        again = [replace(request) for request in given]
        return {c.request.key: (c.tokens, c.exact) for c in draw(policies, again, CONFIG, rows)}

    there = found(asked, 8)
    assert there.keys() == {request.key for request in asked}
    for given, rows in ((asked[::-1], 8), (asked[::5], 8), (asked, 3)):
        assert all(there[key] == each for key, each in found(given, rows).items())


def test_along_a_chain_of_the_aligned_model_all_weights_are_one(policies):
    for done in Metropolis(n=4, limit_means="absorb")(policies, requests(1.0, 10), CONFIG, 16):
        assert done.exact.moves >= 1 and done.log_normalizers.sum() == pytest.approx(0, abs=1e-5)
