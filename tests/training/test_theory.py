"""Alignment and realignment against the paper's equations, on a policy whose every completion is listed."""

from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

from dera_jax.data import buckets
from dera_jax.data.batches import make_batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.policies.policy import Policy, with_params
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import parameters
from dera_jax.training.certificates import tell_certificate
from dera_jax.training.config import PPOConfig, RolloutConfig, RunConfig, TrainConfig
from dera_jax.training.log import read_metrics
from dera_jax.training.loop import Method, fit
from dera_jax.training.optimization import TrainState, init_state, make_update
from dera_jax.training.policy_gradient import policy_gradient_method
from dera_jax.training.ppo import ppo_method
from tests.support.listed import (
    COMPLETIONS,
    DECODE,
    GAINS,
    OTHER,
    PREFIXES,
    PROMPT,
    REWARD,
    by_token,
    closed_form,
    divergence,
    gain,
    of_completions,
    realigned,
    steps,
    table_of,
)
from tests.support.toy import tiny_policy

FIRST = EncodedPrompt(Prompt(0, "x"), (PROMPT,))
BETAS = (0.25, 0.5, 1.0)
PPO = {
    "reference": {
        "kl_estimator": "exact", "value_lam": 1.0, "lam": 0.8, "value_warmup_steps": 5, "value_learning_rate": 0.01,
    }
}  # fmt: skip
"""Settings beside the usual ones, by value head."""


@pytest.fixture(scope="module", autouse=True)
def short():
    """Pads to few tokens: everything here is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "SMALLEST_BUCKET", 4)
        yield


@pytest.fixture(scope="module")
def reference(toy) -> Policy:
    return tiny_policy(toy, 2, scale=1.5)


class Trained(NamedTuple):
    method: Method
    state: TrainState
    table: np.ndarray


def run(method: Method, config: TrainConfig, policy: Policy, out: Path) -> Trained:
    """Trains to the end."""
    *_, (_, state, _) = fit(method, config, RunConfig(), out)
    params = parameters.part("policy.", state.params) or state.params
    params = parameters.whole(policy.config, params, method.constants["frozen"])
    return Trained(method, state, table_of(with_params(policy, params)))


def alignment(algorithm: str, reference: Policy, rollout: RolloutConfig, config: TrainConfig) -> Method:
    given = (reference, reference, [FIRST], [REWARD], rollout)
    if algorithm == "rloo":
        return policy_gradient_method(*given, config)
    head = algorithm.removeprefix("ppo-")
    return ppo_method(
        *given, PPOConfig(num_ppo_epochs=2, vf_coef=1.0, value_head=head, **PPO.get(head, {})), config
    )


@pytest.fixture(scope="module")
def aligned(reference, tmp_path_factory):
    """(algorithm, β) to the reference aligned so; each is trained once."""

    @lru_cache
    def train(algorithm: str, beta: float) -> Trained:
        rate, number = {
            "rloo": (0.01, 50), "ppo-own": (0.005, 25), "ppo-shared": (0.01, 25), "ppo-reference": (0.005, 30),
        }[algorithm]  # fmt: skip
        config = TrainConfig(learning_rate=rate, max_steps=number, batch_size=256)
        method = alignment(algorithm, reference, RolloutConfig(DECODE, 256, beta), config)
        return run(method, config, reference, tmp_path_factory.mktemp(algorithm))

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, num_prompts, num_samples, rollouts", [("pg", 2, 2, 300), ("rloo", 8, 2, 200)]
)
def test_policy_gradient_is_unbiased(toy, algorithm, num_prompts, num_samples, rollouts):
    """The mean over rollouts is the exact gradient of E[R] − β KL (Eq. 1), of every parameter."""
    policy, reference = tiny_policy(toy, 0), tiny_policy(toy, 1)
    prompts = [EncodedPrompt(Prompt(n, "x"), ((PROMPT, OTHER)[n % 2],)) for n in range(num_prompts)]
    beta, config = 0.3, TrainConfig(batch_size=num_prompts * num_samples)
    given = (policy, reference, prompts, [REWARD], RolloutConfig(DECODE, num_samples, beta), config)
    method = policy_gradient_method(*given, algorithm=algorithm)
    state = init_state(method.trained, optax.sgd(1.0), {})

    def flat(gradients):
        return jnp.concatenate([g.ravel() for g in gradients.values()])

    def objective(params):
        # Both prompts at once, hence one half.
        batch = make_batch([tokens for tokens in (PROMPT, OTHER) for _ in COMPLETIONS], COMPLETIONS * 2)
        whole = parameters.whole(policy.config, params, {})
        logprobs = completion_logprobs(policy.config, whole, batch).sum(1)
        of_reference = completion_logprobs(reference.config, reference.params, batch).sum(1)
        gains = jnp.tile(GAINS, 2) - beta * (logprobs - of_reference)
        return jnp.sum(jnp.exp(logprobs) * gains) / 2

    def estimate(batch):
        return -flat(jax.grad(lambda p: method.loss(p, method.constants, batch).values.mean())(state.params))

    exact = np.asarray(flat(jax.jit(jax.grad(objective))(state.params)), float)
    drawn = [method.batches(state, step)[0] for step in range(rollouts)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *drawn)
    found = np.asarray(jax.jit(lambda batches: jax.lax.map(estimate, batches))(stacked), float)
    error = found.std(0) / np.sqrt(rollouts)
    # A parameter that few completions touch has an error of its own that is hardly known.
    distance = (found.mean(0) - exact) / np.maximum(error, 0.05 * error.max())
    along = found @ exact / (exact @ exact)
    slope, slope_error = along.mean(), along.std() / np.sqrt(rollouts)
    typical, largest = np.sqrt(np.mean(distance**2)), np.abs(distance).max()
    print(f"{algorithm}: {slope:.3f} ± {slope_error:.3f} of the exact gradient along it; {distance.size} "
          f"parameters off by {typical:.2f} standard errors, the furthest by {largest:.2f}")  # fmt: skip
    assert abs(slope - 1) < 4 * slope_error and slope_error < 0.08
    assert typical < 1.6 and largest < 5.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, beta",
    [*product(["rloo", "ppo-own"], BETAS), *product(["ppo-shared", "ppo-reference"], [0.5])],
)
def test_alignment_approaches_the_closed_form(reference, aligned, algorithm, beta):
    """KL(π ‖ π*) to Eq. 2 falls by far."""
    tables = table_of(reference), aligned(algorithm, beta).table
    optimum = closed_form(tables[0], beta)
    first, last = (divergence(of_completions(table), optimum) for table in tables)
    print(f"{algorithm}, β = {beta}: KL(π ‖ π*) {first:.4f} before, {last:.5f} after")
    assert last < 0.1 * first


@pytest.mark.slow
def test_dera_of_one_strength_predicts_the_others(reference, aligned):
    """Eq. 6 at λ = β/β′ against Eq. 2 at β′; the exact optimum tells what is the approximation's share."""
    beta, start = 0.5, table_of(reference)
    exact, ours = by_token(closed_form(start, beta)), aligned("rloo", beta).table
    left = divergence(of_completions(ours), of_completions(exact))
    print("  β′     λ   KL of the reference  retrained     DeRa  DeRa of the exact optimum   to π*(β′)")
    for other in (0.25, 0.5, 1.0, 2.0):
        lambda_, target = beta / other, closed_form(start, other)
        again = aligned("rloo", other).table if other in BETAS else np.full_like(start, np.nan)
        tables = start, again, realigned(start, ours, lambda_), realigned(start, exact, lambda_)
        first, again, found, gap = (divergence(of_completions(table), target) for table in tables)
        print(f"{other:4.2f}  {lambda_:4.2f}  {first:19.4f}  {again:9.5f}  {found:7.5f}  {gap:25.6f}")
        # A KL is a square of small errors, and λ multiplies those of the log-ratios.
        assert found < 2 * gap + 2 * lambda_**2 * left + 1e-5
        assert found < 0.1 * first and (gap < 1e-6 if lambda_ == 1 else gap > 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, beta", [("rloo", 0.5), ("ppo-own", 0.9)])
def test_adaptive_beta_reaches_its_target(reference, tmp_path, algorithm, beta):
    """KL(π ‖ π_ref) becomes the target, and β the one whose optimum lies there."""
    start, target = table_of(reference), 0.3
    rollout = RolloutConfig(DECODE, 256, beta, target_kl=target, horizon=2560)
    rate = 0.003 if algorithm == "ppo-own" else 0.01
    config = TrainConfig(learning_rate=rate, max_steps=40, batch_size=256, lr_scheduler_type="linear")
    found = run(alignment(algorithm, reference, rollout, config), config, reference, tmp_path)
    lines = read_metrics(tmp_path)[-10:]
    measured, last = (np.mean([line[name] for line in lines]) for name in ("kl", "beta"))
    exact = divergence(of_completions(found.table), of_completions(start))
    right = brentq(lambda b: divergence(closed_form(start, b), of_completions(start)) - target, 0.1, 5.0)
    print(f"{algorithm}: KL measured {measured:.3f}, exact {exact:.3f}, target {target}; "
          f"β from {beta} to {last:.3f}, of the target's optimum {right:.3f}")  # fmt: skip
    assert measured == pytest.approx(target, rel=0.2) and exact == pytest.approx(target, rel=0.4)
    assert last == pytest.approx(right, rel=0.15)


def values_of(table: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """What a policy may expect at each prefix: reward less penalties to come."""
    values = np.zeros(len(PREFIXES))
    for i in reversed(range(len(PREFIXES))):
        then = [(*PREFIXES[i], word) for word in range(4)]
        later = np.array([values[PREFIXES.index(y)] if y in PREFIXES else gain(y) for y in then])
        values[i] = np.exp(table[i]) @ (later - beta * (table[i] - reference[i]))
    return values


def drawn_completions(batch) -> list[tuple[int, ...]]:
    return [
        tuple(row[mask].tolist()) for row, mask in zip(batch.completions, batch.completion_mask, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("value_head", ["own", "shared", "reference"])
def test_values_predict_what_is_to_come(reference, aligned, value_head):
    method, state, table = aligned(f"ppo-{value_head}", 0.5)
    seen, _ = method.batches(state, 1000)
    seen = jax.tree.map(lambda a: a[0], seen)
    exact = values_of(table, table_of(reference), 0.5)
    expected = np.concatenate([exact[steps(y)[0]] for y in drawn_completions(seen.batch)])
    error = np.sqrt(np.mean((seen.values[seen.batch.completion_mask] - expected) ** 2))
    print(f"{value_head}: values {expected.mean():.3f} ± {expected.std():.3f}, error {error:.3f}")
    assert error < 0.6 * expected.std()


def test_the_policy_stays_while_only_the_value_model_learns(reference, tmp_path):
    """Of two steps of warm-up and one more: the policy is the reference's to the bit until then, and then not."""
    config = TrainConfig(learning_rate=0.01, max_steps=3, batch_size=8)
    ppo = PPOConfig(num_ppo_epochs=2, value_head="reference", value_warmup_steps=2, value_learning_rate=0.05)
    given = (reference, reference, [FIRST], [REWARD], RolloutConfig(DECODE, 8, 0.5), ppo, config)
    tables, values = [], []
    for _, state, _ in fit(ppo_method(*given), config, RunConfig(), tmp_path):
        own = parameters.part("policy.", state.params)
        tables.append(table_of(with_params(reference, parameters.whole(reference.config, own, {}))))
        values.append(np.asarray(state.params["value.2.bias"]))
    start = table_of(reference)
    assert np.array_equal(tables[0], start) and np.array_equal(tables[1], start)
    assert not np.array_equal(tables[2], start)
    assert values[0] != 0 and values[1] != values[0]


def test_a_certificate_is_the_divergence_from_the_optimum(reference, toy):
    """Of a policy that is not its reference: KL(π ‖ π*) and the share of what can be gained, by enumeration."""
    policy, beta = tiny_policy(toy, 0, scale=1.5), 0.5
    config = TrainConfig(max_steps=1000, batch_size=4000)
    prompts = [EncodedPrompt(Prompt(n, "x"), (PROMPT,)) for n in range(20)]
    method = policy_gradient_method(
        policy, reference, prompts, [replace(REWARD, largest=1.0)], RolloutConfig(DECODE, 200, beta), config,
        certificate_samples=200,
    )  # fmt: skip
    told = method.certify(init_state(method.trained, optax.sgd(1.0), {}))
    ours, start = (of_completions(table_of(one)) for one in (policy, reference))
    best = beta * np.log(np.exp(start) @ np.exp(GAINS / beta))
    own = np.exp(ours) @ GAINS - beta * divergence(ours, start)
    exact = divergence(ours, closed_form(table_of(reference), beta))
    assert exact == pytest.approx((best - own) / beta)
    assert told["distance"]["mean"] == pytest.approx(exact, rel=0.1)
    assert told["distance"]["low"] < exact < told["distance"]["high"]
    plain = np.exp(start) @ GAINS
    assert told["share"]["mean"] == pytest.approx((own - plain) / (best - plain), abs=0.1)
    assert (told["prompts"], told["completions"], told["largest_reward"]) == (20, 4000, 1.0)
    line = tell_certificate(told)
    assert f"{told['distance']['mean']:.2f} nats [" in line and "at least" not in line
    assert tell_certificate(told | {"largest_reward": None}).endswith("that were seen")
    assert told["covered"] and tell_certificate(told | {"covered": False}).endswith("largest reward")


@pytest.mark.slow
def test_first_update_of_ppo_is_a_policy_gradient(toy):
    """Of one epoch in one part: ∇ log π(yₜ) times advantages computed by their definition."""
    policy, reference = tiny_policy(toy, 0), tiny_policy(toy, 1)
    table, of_reference = table_of(policy), table_of(reference)
    beta, gamma, lam = 0.3, 0.9, 0.8
    ppo = PPOConfig(num_ppo_epochs=1, gamma=gamma, lam=lam)
    fixed = (policy, reference, [FIRST], [REWARD], RolloutConfig(DECODE, 64, beta))
    method = ppo_method(*fixed, ppo, TrainConfig(batch_size=64))
    score = jax.random.normal(jax.random.key(0), (policy.config.width, 1)) / 4
    start = init_state(method.trained | {"value.score.kernel": score}, optax.sgd(1.0), {})
    seen, _ = method.batches(start, 0)
    mask, completions = seen.batch.completion_mask, drawn_completions(seen.batch)

    at = np.concatenate([steps(y)[0] for y in completions])
    same = [np.ptp(seen.values[mask][at == i]) for i in set(at)]
    assert max(same) < 1e-5 and np.std(seen.values[mask]) > 0.1, "values are those of prefixes"
    advantages = np.zeros(mask.shape)
    for row, y in enumerate(completions):
        rewards = -beta * (table - of_reference)[steps(y)]
        rewards[-1] += gain(y)
        values = np.append(seen.values[row, : len(y)], 0.0)
        delta = rewards + gamma * values[1:] - values[:-1]
        decay = (gamma * lam) ** np.arange(len(y))
        advantages[row, : len(y)] = [delta[t:] @ decay[: len(y) - t] for t in range(len(y))]
    advantages = np.where(mask, (advantages - advantages[mask].mean()) / advantages[mask].std(), 0)

    def objective(own):
        logprobs = completion_logprobs(policy.config, parameters.whole(policy.config, own, {}), seen.batch)
        return jnp.sum(logprobs * advantages) / mask.sum()

    own = parameters.part("policy.", start.params)
    before, expected = jax.tree.map(np.array, (own, jax.jit(jax.grad(objective))(own)))
    state, figures = make_update(method.loss, optax.sgd(1.0))(start, method.constants, seen)
    for name, after in parameters.part("policy.", state.params).items():
        np.testing.assert_allclose(after - before[name], expected[name], atol=2e-5, err_msg=name)
    assert max(np.abs(g).max() for g in expected.values()) > 0.05
    entropy = -np.sum(np.exp(table) * table, axis=1)
    assert float(figures["entropy"]) == pytest.approx(entropy[at].mean(), abs=1e-4)
    assert float(figures["clipped"]) == 0
