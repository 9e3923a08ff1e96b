"""How far a trained policy is from the optimum of its objective, told when its training ends."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import PyTree

from dera_jax.analysis.estimates import estimate_to_json
from dera_jax.analysis.optimum import Optimum, distance, optimum_of
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.policies.policy import Policy, with_params
from dera_jax.rewards.registry import Reward
from dera_jax.training import parameters
from dera_jax.training.config import RolloutConfig, TrainConfig
from dera_jax.training.optimization import TrainState
from dera_jax.training.rollout import Rollout, draw_rollout

PROMPTS = 64
"""At most."""
SHARE = 0.1
"""Of the completions that the training itself draws, at most."""
NAME = "reward"
"""Of the sum of all rewards, in rows."""
OF_POLICY, OF_REFERENCE = -2, -3
"""In the place of a step, so that no training drew by the same noise."""
RELIABLE = 0.1
"""Effective share of the reference's completions below which their log-mean-exp says little."""


def certifier(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    config: TrainConfig,
    frozen: PyTree,
    samples: int,
    part: Callable[[PyTree], PyTree] = lambda params: params,
) -> Callable[[TrainState], dict] | None:
    """Returns what tells KL(π ‖ π*) of the policy as it is in the end; None if it shall not.

    The first prompts are taken, as many as a tenth of the training's completions allow, at most 64.

    Args:
      samples: completions of each prompt, of the policy and of the reference each; 0: nothing is told.
      part: of the trained parameters, what is the policy's.
    """
    if not samples or rollout.decode.temperature != 1:
        return None  # or of another law than the policy's
    # In batches of the size that the training has compiled already.
    size = max(1, config.batch_size // samples)
    most = SHARE * config.batch_size * config.max_steps / (2 * samples)
    chosen = prompts[: min(PROMPTS, max(size, int(most)))]

    def rows(one: Policy, compared: Policy | None, step: int) -> list[dict]:
        found = []
        for start in range(0, len(chosen), size):
            some = chosen[start : start + size]
            drawn = draw_rollout(one, compared, some, samples, rewards, rollout.decode, step)
            found += rows_of(drawn, 0.0 if compared is None else 1.0)
        return found

    def certify(state: TrainState) -> dict:
        beta = float(state.kept.get("beta", rollout.beta))
        if not beta:
            return {}
        params = parameters.whole(policy.config, part(state.params), frozen)
        own = rows(with_params(policy, params), reference, OF_POLICY)
        optimum = optimum_of(rows(reference, None, OF_REFERENCE), NAME, beta)
        return certificate(optimum, own, beta, _largest(rewards))

    return certify


def _largest(rewards: Sequence[Reward]) -> float | None:
    """Returns what a weighted sum of rewards never exceeds; None where no such value is known."""
    if any(reward.largest is None or reward.weight < 0 for reward in rewards):
        return None
    return sum(reward.largest * reward.weight for reward in rewards)


def rows_of(rollout: Rollout, strength: float) -> list[dict]:
    """Returns what an optimum is made of; `strength` is 0 for the reference's completions, 1 for a policy's."""
    return [
        {
            "prompt_id": completion.request.prompt.id,
            "sample": completion.request.sample,
            "lambda": strength,
            "length": completion.length,
            "rewards": {NAME: float(reward)},
            "kl_to_reference": float(kl),
        }
        for completion, reward, kl in zip(
            rollout.completions, rollout.rewards, rollout.log_ratio, strict=True
        )
    ]


def certificate(optimum: Optimum, rows: Sequence[dict], beta: float, largest: float | None) -> dict:
    """Returns what a manifest says of the distance.

    Args:
      rows: of the policy.
      beta: KL strength of the objective, above 0.
      largest: value of the reward; None where none is known.
    """
    found = distance(optimum, rows, NAME, 1.0, beta)
    named = ("distance", "share", "objective", "best", "reward", "kl")
    return {
        "beta": beta,
        **{name: estimate_to_json(getattr(found, name)) for name in named},
        "effective_share": optimum.at(optimum.beta / beta).effective,
        "largest_reward": largest,
        # Else the completions of the reference do not show what can be gained.
        "covered": max(row["rewards"][NAME] for row in rows) <= float(optimum.reward.max()),
        "prompts": found.prompts,
        "completions": len(rows),
    }


def tell_certificate(told: dict) -> str:
    """Returns a certificate as one line.

    >>> tell_certificate({"beta": 0.5, "distance": {"mean": 0.31, "low": 0.25, "high": 0.375}, "share":
    ...     {"mean": 0.34, "low": None, "high": None}, "effective_share": 0.5, "largest_reward": 0.0,
    ...     "covered": True, "prompts": 20, "completions": 320})
    'KL to the optimum of β = 0.5: 0.31 nats [0.25, 0.38]; 34% of what the objective can gain (16 × 20 completions)'
    """
    distance, share = told["distance"], told["share"]
    each = told["completions"] // told["prompts"]
    gained = "no gain known" if share["mean"] is None else (
        f"{share['mean']:.0%}{_interval(share, '.0%')} of what the objective can gain"
    )  # fmt: skip
    line = (
        f"KL to the optimum of β = {told['beta']:g}: {distance['mean']:.2f} nats{_interval(distance, '.2f')}; {gained} "
        f"({each} × {told['prompts']} completions)"
    )
    if not told["covered"]:
        line += "; at least, for no completion of the reference has the model's largest reward"
    elif told["largest_reward"] is None:
        line += "; at least, for rewards without a known bound have it from the completions that were seen"
    elif told["effective_share"] < RELIABLE:
        line += f"; at least, for {told['effective_share']:.0%} of the reference's completions decide it"
    return line


def _interval(told: dict, form: str) -> str:
    low, high = told["low"], told["high"]
    known = low is not None and not (math.isnan(low) or math.isnan(high))
    return f" [{low:{form}}, {high:{form}}]" if known else ""
