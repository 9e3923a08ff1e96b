"""Alignment with a reward by policy gradient, held near the reference by a KL penalty of strength β."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dera_jax import losses, trained
from dera_jax.batches import Batch, shuffled
from dera_jax.configs import (
    DecodeConfig,
    TrainConfig,
    check_choice,
    check_count,
    check_number,
    take_plain_numbers,
)
from dera_jax.encoding import EncodedPrompt
from dera_jax.optimization import Terms, TrainState
from dera_jax.policies import Policy, with_params
from dera_jax.rewards import Reward
from dera_jax.rollout import Rollout, draw_rollout
from dera_jax.score import completion_logits, token_logprobs
from dera_jax.training import Method


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are drawn and judged in a step."""

    decode: DecodeConfig
    """Temperature 1 without truncation is on-policy."""
    num_samples: int = 4
    """Completions of each prompt in a step; ≥ 1. The batch size is a multiple."""
    beta: float = 0.1
    """KL strength, in reward per nat; ≥ 0."""
    target_kl: float | None = None
    """KL divergence that β is adapted to, in nats per completion; None leaves β as it is."""
    horizon: int = 10_000
    """Completions in which an adaptive β changes by about a fifth; ≥ 1."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("num_samples", self.num_samples)
        check_number("beta", self.beta, 0.0, float("inf"))
        check_count("horizon", self.horizon)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, 1e-9, float("inf"))


class Judged(NamedTuple):
    """Drawn completions and how much better than expected they were."""

    batch: Batch
    advantages: Float[Array | np.ndarray, " rows"]
    log_ratio: Float[Array | np.ndarray, " rows"]
    token_share: Float[Array | np.ndarray, " rows"]
    """Rows over tokens of the whole batch: a mean over tokens is that of rows' sums times this."""


def policy_gradient_method(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    config: TrainConfig,
    *,
    algorithm: str = "rloo",
    held_out: Sequence[EncodedPrompt] = (),
) -> Method:
    """Returns the training of `policy` by REINFORCE.

    Maximizes E[R(x, y)] − β KL(π ‖ π_ref) (Eq. 1) along ∇ log π(y|x) · A, where A is
    R(x, y) − β log(π(y|x)/π_ref(y|x)) less a mean of other samples (Eq. 13; the penalty is of the whole
    sequence): `rloo` takes those of the same prompt, `pg` all others of the batch.
    """
    check_choice("algorithm", algorithm, ("pg", "rloo"))
    if algorithm == "rloo" and rollout.num_samples < 2:
        raise ValueError(f"rloo: expected at least 2 samples of each prompt, got {rollout.num_samples}")
    if config.batch_size < 2:
        raise ValueError("batch_size: a baseline is of other samples: expected at least 2, got 1")
    start, frozen = trained.split(policy.params)
    draw, drawn_last = drawer(policy, reference, prompts, rewards, rollout, config)

    def loss(params: PyTree, given: dict, judged: Judged) -> Terms:
        params = trained.whole(policy.config, params, given["frozen"])
        logits = completion_logits(policy.config, params, judged.batch)
        logprobs = token_logprobs(logits, judged.batch).sum(axis=1)
        values = losses.policy_gradient_loss(logprobs, judged.advantages)
        entropy = jnp.sum(losses.entropy(logits) * judged.batch.completion_mask, axis=1) * judged.token_share
        return Terms(values, jnp.ones_like(values), {"entropy": entropy})

    def batches(state: TrainState, step: int) -> tuple[Judged, dict]:
        params = trained.whole(policy.config, state.params, frozen)
        drawn = draw(params, step)
        beta = float(state.kept.get("beta", rollout.beta))
        gains = drawn.rewards - beta * drawn.log_ratio
        groups = gains.reshape(-1, rollout.num_samples) if algorithm == "rloo" else gains[None]
        advantages = losses.leave_one_out(groups).ravel().astype(np.float32)
        mask = drawn.batch.completion_mask
        share = np.full(len(mask), len(mask) / mask.sum(), np.float32)
        judged = Judged(drawn.batch, advantages, drawn.log_ratio.astype(np.float32), share)
        return judged, summary(drawn) | ({"beta": beta} if state.kept else {}) | drawn.seconds

    return Method(
        start,
        loss,
        batches,
        constants={"frozen": frozen},
        evaluate=evaluator(policy, reference, held_out, rewards, rollout, frozen),
        drawn=None if held_out else drawn_last,
        **adaptive_beta(rollout, config),
    )


def drawer(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    config: TrainConfig,
) -> tuple[Callable[[dict, int], Rollout], Callable[[], list[dict]]]:
    """Returns what draws a step's completions from the policy with given parameters, and samples of the last.

    Prompts are cycled through in a new order every epoch.

    Raises:
      ValueError: a batch that is no multiple of the samples, or larger than the prompts allow.
    """
    num_prompts, left = divmod(config.batch_size, rollout.num_samples)
    if left:
        raise ValueError(
            f"batch_size {config.batch_size} and num_samples {rollout.num_samples}: expected a multiple"
        )
    if num_prompts > len(prompts):
        raise ValueError(f"expected at least {num_prompts} prompts, found {len(prompts)}")
    order = shuffled(len(prompts), num_prompts, config.seed)
    last: list[Rollout] = []

    def draw(params: dict, step: int) -> Rollout:
        # Where an epoch ends within the step, a prompt may come twice: others stand in, so that every
        # step has as many and nothing is compiled again.
        numbers = list(dict.fromkeys([*order(step).tolist(), *range(len(prompts))]))[:num_prompts]
        chosen = [prompts[number] for number in numbers]
        drawing = with_params(policy, params)
        last[:] = [
            draw_rollout(drawing, reference, chosen, rollout.num_samples, rewards, rollout.decode, step)
        ]
        return last[0]

    return draw, lambda: [sample for one in last for sample in samples(one)]


def summary(rollout: Rollout) -> dict[str, float]:
    """Returns what a step's completions are like."""
    completions = rollout.completions
    several = rollout.each if len(rollout.each) > 1 else {}
    return {
        "reward": float(rollout.rewards.mean()),
        **{f"rewards/{name}": float(values.mean()) for name, values in several.items()},
        "kl": float(rollout.log_ratio.mean()),
        "length": sum(c.length for c in completions) / len(completions),
        "ended": sum(c.finish_reason != "length" for c in completions) / len(completions),
        "tokens": sum(len(c.tokens) for c in completions),
    }


def evaluator(
    policy: Policy,
    reference: Policy,
    held_out: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    frozen: PyTree,
    part: Callable[[PyTree], PyTree] = lambda params: params,
):
    """Returns what draws one completion of each held-out prompt, always by the same noise; None without any.

    Args:
      part: of the trained parameters, what is the policy's.
    """
    if not held_out:
        return None

    def evaluate(state: TrainState, _: dict) -> tuple[dict, list[dict]]:
        start = time.perf_counter()
        params = trained.whole(policy.config, part(state.params), frozen)
        drawn = draw_rollout(with_params(policy, params), reference, held_out, 1, rewards, rollout.decode, -1)
        figures = summary(drawn)
        seconds = round(time.perf_counter() - start, 4)
        figures.pop("tokens")
        return {f"eval_{n}": v for n, v in figures.items()} | {"eval_seconds": seconds}, samples(drawn)

    return evaluate


def samples(rollout: Rollout, count: int = 8) -> list[dict]:
    """Returns the first completions of a rollout, for a person to read."""
    return [
        {"prompt_id": c.cell.prompt.id, "completion": c.text, "reward": float(reward)}
        for c, reward in zip(rollout.completions[:count], rollout.rewards[:count], strict=True)
    ]


def adaptive_beta(rollout: RolloutConfig, config: TrainConfig) -> dict:
    """Returns the fields of a `Method` that adapt β to a target, if there is one."""
    if rollout.target_kl is None:
        return {}
    if config.batch_size >= 5 * rollout.horizon:
        # β changes by up to 0.2 n / H in a step: it would become 0 or less.
        raise ValueError(
            f"horizon: expected more than a fifth of the batch size ({config.batch_size}), got {rollout.horizon}"
        )

    def renew(_: PyTree, kept: dict, batch: Any, step: Int[Array, ""]) -> dict:
        kl = batch.log_ratio.mean()
        return {
            "beta": losses.next_beta(kept["beta"], kl, rollout.target_kl, rollout.horizon, config.batch_size)
        }

    return {"kept": {"beta": jnp.float32(rollout.beta)}, "renew": renew}
