"""The optimum of a reward under a KL penalty, against sums over all responses of a bigram model."""

import numpy as np
import pytest
from scipy import stats

from dera_jax.analysis.optimum import distance, draws, optimum_of
from tests.support.bigrams import Bigrams

LONGEST, BETA = 64, 0.5


@pytest.fixture(scope="module")
def pair(toy):
    return Bigrams(toy)


def judged(rows):
    """A reward that falls with the length, at most 0."""
    return [row | {"rewards": {"brief": -row["length"] / 20}} for row in rows]


@pytest.fixture(scope="module")
def optimum(pair):
    return optimum_of(judged(pair.rows(0.0, 50, 200, LONGEST, 0)), "brief", BETA)


def exact(pair, strength):
    """Probabilities of the lengths 0, 1, … under the reference and the optimum, and log Z."""
    ended, cut = pair.sums(pair.weights(0.0), LONGEST)
    mass = np.append(ended, cut)  # EOS left out of the length
    reward = -np.arange(LONGEST + 1) / 20
    weight = mass * np.exp(strength * reward / BETA)
    return reward, weight / weight.sum(), np.log(weight.sum())


def close(found, value):
    return abs(found.mean - value) < 4 * found.half_width / 1.96 + 1e-6  # of tables in float32


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_it_is_the_optimum_of_all_responses(pair, optimum, strength):
    reward, law, log_z = exact(pair, strength)
    figures = optimum.at(strength).figures
    print(strength, optimum.at(strength).effective, {name: each.mean for name, each in figures.items()})
    best = law @ reward
    kl = strength * best / BETA - log_z
    assert close(figures["reward"], best)
    assert close(figures["kl"], kl)
    assert close(figures["length"], law @ np.arange(LONGEST + 1))
    if strength:
        assert close(figures["objective"], best - BETA / strength * kl)


def test_accepted_completions_have_its_law(pair, optimum):
    _, law, _ = exact(pair, 1.0)
    found = [each for every in draws(optimum, 1.0, 8, 0.0, seed=1) for each in every]
    accepted = [optimum.rows[each.row]["length"] for each in found if each.accepted]
    assert len(accepted) > 350
    edges = [0, 2, 4, 7, 12, LONGEST + 1]
    counts = np.histogram(accepted, edges)[0]
    expected = np.add.reduceat(law, edges[:-1]) * len(accepted)
    assert stats.chisquare(counts, expected).pvalue > 1e-4
    # Of a prompt no completion is taken twice.
    assert len({each.row for each in found if each.accepted}) == len(accepted)


def test_draws_do_not_prefer_completions_that_ended_first(optimum):
    """Rows lie in a file as they ended, the short ones first."""
    by_length = sorted(optimum.rows, key=lambda row: row["length"])
    again = optimum_of(by_length, "brief", BETA)
    assert [row["sample"] for row in again.rows] == [row["sample"] for row in optimum.rows]
    assert draws(again, 1.0, 8, 0.0, seed=1) == draws(optimum, 1.0, 8, 0.0, seed=1)


def test_other_draws_follow_the_weights(pair):
    """Where none is accepted; the bound is far above what any completion has."""
    few = optimum_of(judged(pair.rows(0.0, 400, 20, LONGEST, 5)), "brief", BETA)
    found = [each for every in draws(few, 1.0, 2, 20.0, seed=1) for each in every]
    assert not any(each.accepted for each in found)
    lengths = np.array([few.rows[each.row]["length"] for each in found])
    mean = few.at(1.0).figures["length"]
    assert abs(lengths.mean() - mean.mean) < 4 * lengths.std() / np.sqrt(len(lengths))


def test_distances_are_divergences_to_the_optimum(pair, optimum):
    """KL(π‖π*) is E[log π − log π*], which rows of the policy itself tell without the identity."""
    _, _, log_z = exact(pair, 1.0)
    # The aligned model at λ = 1, whose log-probabilities rows have.
    rows = judged(pair.rows(1.0, 50, 40, LONGEST, 9))
    _, kl = pair.log_normalizers(rows, 1.0)
    rows = [row | {"kl_to_reference": float(each)} for row, each in zip(rows, kl, strict=True)]
    found = distance(optimum, rows, "brief", 1.0, BETA)
    direct = [
        row["aligned_logprob"] - row["reference_logprob"] - row["rewards"]["brief"] / BETA + log_z
        for row in rows
    ]
    print(found.distance, np.mean(direct))
    error = np.hypot(found.distance.half_width / 1.96, np.std(direct) / np.sqrt(len(direct)))
    assert abs(found.distance.mean - np.mean(direct)) < 4 * error
    assert found.distance.mean > 0.5


def test_the_optimum_is_at_no_distance_from_itself(pair, optimum):
    """Its own samples, each with the divergence that its prompt has, tell a distance of 0."""
    point = optimum.at(1.0)
    rows = [
        optimum.rows[each.row] | {"kl_to_reference": float(point.kl[n])}
        for n, every in enumerate(draws(optimum, 1.0, 8, 0.0, seed=1))
        for each in every
    ]
    found = distance(optimum, rows, "brief", 1.0, BETA)
    assert close(found.distance, 0.0)


def test_without_a_bound_nothing_is_called_exact(optimum):
    found = [each for every in draws(optimum, 1.0, 4, None, seed=1) for each in every]
    assert len(found) == 200 and not any(each.accepted for each in found)
    # At λ = 0 everything is: it is the reference.
    assert all(each.accepted for every in draws(optimum, 0.0, 4, None, seed=1) for each in every)
