"""Alignment by policy gradient: reward, held near the reference by a KL penalty of strength β."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dera_jax.batches import Batch, shuffled
from dera_jax.configs import DecodeConfig, TrainConfig
from dera_jax.encoding import EncodedPrompt
from dera_jax.losses import leave_one_out, policy_gradient_loss
from dera_jax.policies import Policy, with_params
from dera_jax.rewards import Reward
from dera_jax.rollout import Rollout, draw_rollout
from dera_jax.score import completion_logprobs
from dera_jax.training import fit


class _Judged(NamedTuple):
    batch: Batch
    advantages: Float[Array, " rows"]


def train_policy_gradient(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    beta: float,
    num_samples: int,
    decode: DecodeConfig,
    config: TrainConfig,
    out: Path,
) -> Iterator[tuple[int, PyTree]]:
    """Trains `policy` by REINFORCE, yielding (steps done, parameters).

    Maximizes E[R(x, y)] − β KL(π ‖ π_ref) (Eq. 1) along ∇ log π(y|x) · A, where A is
    R(x, y) − β log(π(y|x)/π_ref(y|x)) less the mean of the prompt's other samples (Eq. 13 with a
    leave-one-out baseline; the penalty is of the whole sequence).

    Args:
      prompts: cycled through in a new order every epoch.
      beta: KL strength, in reward per nat; ≥ 0.
      num_samples: completions of each prompt in a step; ≥ 2. config.batch_size is a multiple.
      decode: how the policy is sampled; temperature 1 without truncation is on-policy.
      out: folder that gets metrics.jsonl.
    """
    if num_samples < 2 or config.batch_size % num_samples:
        raise ValueError(
            f"batch_size {config.batch_size} and num_samples {num_samples}: expected at least 2 samples "
            "of each prompt and a batch that is a multiple"
        )
    num_prompts = config.batch_size // num_samples
    if num_prompts > len(prompts):
        raise ValueError(f"expected at least {num_prompts} prompts, found {len(prompts)}")
    order = shuffled(len(prompts), num_prompts, config.seed)

    def loss(params: PyTree, judged: _Judged):
        logprobs = completion_logprobs(policy.config, params, judged.batch).sum(axis=1)
        return policy_gradient_loss(logprobs, judged.advantages), {}

    def batches(params: PyTree, step: int):
        start = time.perf_counter()
        # Where an epoch ends within the step, a prompt may come twice: others stand in, so that every
        # step has as many and nothing is compiled again.
        numbers = list(dict.fromkeys([*order(step).tolist(), *range(len(prompts))]))[:num_prompts]
        chosen = [prompts[number] for number in numbers]
        rollout = draw_rollout(
            with_params(policy, params), reference, chosen, num_samples, rewards, decode, step
        )
        advantages = leave_one_out(rollout.rewards - beta * rollout.log_ratio)
        logged = _summary(rollout) | {"rollout_seconds": round(time.perf_counter() - start, 4)}
        return _Judged(rollout.batch, jnp.asarray(advantages.ravel(), jnp.float32)), logged

    return fit(policy.params, config, loss, batches, out / "metrics.jsonl")


def _summary(rollout: Rollout) -> dict[str, float]:
    completions = rollout.completions
    return {
        "reward": float(rollout.rewards.mean()),
        "kl": float(rollout.log_ratio.mean()),
        "length": sum(c.length for c in completions) / len(completions),
        "ended": sum(c.finish_reason != "length" for c in completions) / len(completions),
    }
