"""What methods share that train on a policy's own completions: rollouts, evaluation, an adaptive β."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dera_jax.data.batches import Batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.order import shuffled
from dera_jax.policies.policy import Policy, with_params
from dera_jax.rewards.registry import Reward
from dera_jax.training import losses, parameters
from dera_jax.training.config import RolloutConfig, TrainConfig
from dera_jax.training.optimization import TrainState
from dera_jax.training.rollout import Rollout, draw_rollout


class Judged(NamedTuple):
    """Drawn completions and how much better than expected they were."""

    batch: Batch
    advantages: Float[Array | np.ndarray, " rows"]
    log_ratio: Float[Array | np.ndarray, " rows"]
    token_share: Float[Array | np.ndarray, " rows"]
    """Rows over tokens of the whole batch: a mean over tokens is that of rows' sums times this."""


def drawer(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    config: TrainConfig,
) -> tuple[Callable[[dict, int], Rollout], Callable[[], list[dict]]]:
    """Returns what draws a step's completions from the policy with given parameters, and samples of the last.

    Prompts are cycled through in a new order every epoch.

    Args:
      reference: None: the policy itself, whose KL is then 0.

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
        params = parameters.whole(policy.config, part(state.params), frozen)
        drawn = draw_rollout(with_params(policy, params), reference, held_out, 1, rewards, rollout.decode, -1)
        figures = summary(drawn)
        seconds = round(time.perf_counter() - start, 4)
        figures.pop("tokens")
        return {f"eval_{n}": v for n, v in figures.items()} | {"eval_seconds": seconds}, samples(drawn)

    return evaluate


def samples(rollout: Rollout, count: int = 8) -> list[dict]:
    """Returns the first completions of a rollout, for a person to read."""
    return [
        {"prompt_id": c.request.prompt.id, "completion": c.text, "reward": float(reward)}
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
