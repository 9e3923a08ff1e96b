"""The one-shot dual: against a constrained optimizer on a space that can be listed."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize

from dera_jax.analysis.dual import solve

BETA = 0.4


def rows_of(prompts=3, samples=5, seed=0):
    numbers = np.random.default_rng(seed)
    return [
        {
            "prompt_id": prompt, "sample": sample, "lambda": 0.0, "seed": 0,
            "rewards": {"g": float(numbers.normal()), "r": float(numbers.normal())},
        }
        for prompt in range(prompts)
        for sample in range(samples)
    ]  # fmt: skip


def table(rows, name):
    prompts = len({row["prompt_id"] for row in rows})
    return np.array([row["rewards"][name] for row in rows]).reshape(prompts, -1)


@pytest.mark.parametrize("reward", [None, "r"])
def test_it_is_the_constrained_optimum(reward):
    """Of all policies on the listed completions, found by SLSQP over their probabilities."""
    rows = rows_of()
    g, n = table(rows, "g"), 5
    r = np.zeros_like(g) if reward is None else table(rows, "r")
    found = solve(rows, "g", 0.5, BETA, reward)

    def loss(flat):
        p = np.maximum(flat.reshape(g.shape), 1e-15)
        return -(p * r - BETA * p * np.log(p * n)).sum() / len(g)

    limits = [
        {"type": "eq", "fun": lambda flat: flat.reshape(g.shape).sum(axis=1) - 1},
        {"type": "ineq", "fun": lambda flat: (flat.reshape(g.shape) * g).sum() / len(g) - 0.5},
    ]
    best = minimize(
        loss, np.full(g.size, 1 / n), method="SLSQP", bounds=[(1e-12, 1)] * g.size, constraints=limits,
        options={"ftol": 1e-15, "maxiter": 2000},
    )  # fmt: skip
    value = (0 if reward is None else found.reward) - BETA * found.kl
    assert found.mu > 0 and value == pytest.approx(-best.fun, abs=1e-6)
    assert found.mean == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("reward", [None, "r"])
def test_it_minimizes_the_dual(reward):
    rows = rows_of(seed=1)
    g, r = table(rows, "g"), (0 if reward is None else table(rows, "r"))

    def dual(mu, bound):
        return np.mean(BETA * np.log(np.exp((r + mu * g) / BETA).mean(axis=1))) - mu * bound

    for bound in (0.3, 0.6):
        mu = solve(rows, "g", bound, BETA, reward).mu
        assert all(dual(mu, bound) <= dual(max(0, mu + step), bound) + 1e-12 for step in (-1e-3, 1e-3, 0.3))


def test_a_constraint_that_holds_already_costs_nothing():
    found = solve(rows_of(), "g", -5.0, BETA)
    assert found.mu == 0 and found.kl == pytest.approx(0, abs=1e-12) and found.effective == pytest.approx(1)
    assert found.mean == found.plain


def test_equal_rewards_meet_a_bound_of_their_value():
    rows = [row | {"rewards": {"g": -0.1}} for row in rows_of()]
    assert solve(rows, "g", -0.1, BETA).mu == 0
    with pytest.raises(ValueError, match=r"expected less than -0\.1"):
        solve(rows, "g", -0.0999, BETA)


def test_the_largest_mean_is_not_reached():
    rows = rows_of()
    most = float(table(rows, "g").max(axis=1).mean())
    with pytest.raises(ValueError, match="no finite weight reaches"):
        solve(rows, "g", most, BETA)


def test_more_is_asked_for_at_a_larger_strength():
    found = [solve(rows_of(seed=2), "g", bound, BETA) for bound in (0.0, 0.2, 0.4, 0.6)]
    assert all(one.mu <= two.mu and one.kl <= two.kl for one, two in pairwise(found))
    assert all(each.low <= each.mu <= each.high for each in found if not np.isnan(each.low))


def test_what_the_completions_cannot_tell_is_refused():
    with pytest.raises(ValueError, match=r"g>=9: expected less than \d"):
        solve(rows_of(), "g", 9.0, BETA)
    with pytest.raises(ValueError, match="expected several completions of a prompt"):
        solve(rows_of(samples=1), "g", 0.1, BETA)
