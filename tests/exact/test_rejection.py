"""Exact draws of a tiny pair, all of whose completions are listed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.exact.rejection import Rejection
from dera_jax.search.noise import uniform
from tests.support.response_law import ResponseLaw, requests
from tests.support.toy import tiny_policy

LONGEST, LAMBDA, SAMPLES = 4, 0.5, 1500
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=5)


@pytest.fixture(scope="module")
def policies(toy):
    return [tiny_policy(toy, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def law(policies):
    return ResponseLaw(policies, LAMBDA, LONGEST)


@pytest.mark.parametrize("limit_means", ["ended", "absorb"])
def test_accepted_completions_have_the_response_level_law(policies, law, limit_means):
    expected, z = law.probabilities(limit_means)
    found = list(Rejection(limit_means=limit_means)(policies, requests(LAMBDA, SAMPLES), CONFIG, 256))
    counts = law.counts(found)
    many = expected * SAMPLES >= 5
    observed = np.append(counts[many], counts[~many].sum())
    wanted = np.append(expected[many], expected[~many].sum()) * SAMPLES
    there = wanted > 0
    assert stats.chisquare(observed[there], wanted[there]).pvalue > 1e-4 and observed[~there].sum() == 0
    assert np.abs(counts / SAMPLES - expected).sum() / 2 <= np.sqrt(len(expected) / SAMPLES)
    tries = sum(done.exact.tries for done in found)
    assert abs(SAMPLES / tries - z) < 4 * np.sqrt(z * (1 - z) / tries)
    assert all(done.exact.accepted and done.exact.log_weight is None for done in found)
    if limit_means == "ended":
        assert {done.finish_reason for done in found} == {"eos"} and any(done.exact.cut for done in found)


def test_it_is_the_first_try_that_is_accepted(policies):
    """Found by hand among whole completions of the mixture: giving up early changes nothing."""
    found = {c.request.sample: c for c in Rejection()(policies, requests(LAMBDA, 40), CONFIG, 16)}
    tries = [replace(r, attempt=n) for r in requests(LAMBDA, 40) for n in range(40)]
    whole = {(c.request.sample, c.request.attempt): c for c in complete_unshared(policies, tries, CONFIG, 16)}
    drawn = 0
    for sample, done in found.items():
        for attempt in range(40):
            other = whole[sample, attempt]
            drawn += len(other.tokens)
            limit = np.log(uniform(other.request, CONFIG, "accept"))
            if other.finish_reason == "eos" and other.log_normalizers.sum() >= limit:
                break
        assert (done.tokens, done.exact.tries) == (other.tokens, attempt + 1)
        np.testing.assert_array_equal(done.model_logprobs, other.model_logprobs)
    assert sum(done.exact.tokens for done in found.values()) < drawn


def test_neighbours_order_and_rows_change_nothing(policies):
    asked = requests(LAMBDA, 4, prompts=3) + requests(0.2, 3, prompts=3)

    def found(given, rows):
        again = [replace(request) for request in given]
        return {c.request.key: (c.tokens, c.exact) for c in Rejection()(policies, again, CONFIG, rows)}

    there = found(asked, 8)
    assert there.keys() == {request.key for request in asked}
    for given, rows in ((asked[::-1], 8), (asked[::5], 8), (asked, 3), (asked, 60)):
        assert all(there[key] == each for key, each in found(given, rows).items())


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_the_models_themselves_accept_all(policies, lambda_):
    plain = {c.request.sample: c for c in complete_unshared(policies, requests(lambda_, 30), CONFIG, 16)}
    for done in Rejection(limit_means="absorb")(policies, requests(lambda_, 30), CONFIG, 16):
        assert done.tokens == plain[done.request.sample].tokens and done.exact.tries == 1


def test_a_request_without_luck_is_kept_with_its_weight(policies, law):
    draw = Rejection(max_tries=2)
    found = list(draw(policies, requests(LAMBDA, 200), CONFIG, 64))
    kept = [done for done in found if not done.exact.accepted]
    assert len(found) == 200 and 10 < len(kept) < 150
    assert {done.finish_reason for done in kept} == {"eos", "length"}
    for done in kept:
        assert done.exact.tries == 2
        if done.finish_reason == "length":
            assert done.exact.log_weight is None and done.exact.cut
        else:
            assert done.exact.log_weight == pytest.approx(done.log_normalizers.sum())


@pytest.mark.parametrize(
    ("lambda_", "config", "said"),
    [
        (1.5, {}, r"exact: expected 0 ≤ λ ≤ 1, where Π z ≤ 1, found 1.5; particles:N takes any λ"),
        (-0.5, {}, "found -0.5"),
        (0.5, {"temperature": 0.7}, "which temperature would change; expected temperature 1, found 0.7"),
        (0.5, {"top_k": 5}, "which top_k would change; expected no top_k, found 5"),
        (0.5, {"top_p": 0.9}, "which top_p would change; expected no top_p, found 0.9"),
    ],
)
def test_settings_of_another_law_are_refused(policies, lambda_, config, said):
    with pytest.raises(ValueError, match=said):
        list(Rejection()(policies, requests(lambda_, 1), replace(CONFIG, **config), 4))
