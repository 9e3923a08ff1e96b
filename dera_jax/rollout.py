"""Rollouts: completions drawn from a policy in training, judged, with the reference's log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float

from dera_jax.batches import Batch, make_batch
from dera_jax.configs import DecodeConfig
from dera_jax.encoding import EncodedPrompt
from dera_jax.generate import Cell, Completion, complete
from dera_jax.policies import Policy
from dera_jax.rewards import Completions, Reward
from dera_jax.score import completion_logprobs

_logprobs = jax.jit(completion_logprobs, static_argnames="config")


@dataclass(frozen=True)
class Rollout:
    """Samples of some prompts, those of one prompt in one row."""

    completions: list[Completion]
    batch: Batch
    rewards: Float[np.ndarray, "prompts samples"]
    log_ratio: Float[np.ndarray, "prompts samples"]
    """log π(y|x) − log π_ref(y|x), in nats."""


def draw_rollout(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    num_samples: int,
    rewards: Sequence[Reward],
    config: DecodeConfig,
    step: int,
) -> Rollout:
    """Returns `num_samples` completions of each prompt; several rewards are added up.

    The policy decodes alone, one model at weight 1; the reference then reads all completions at once.

    Args:
      step: folded into the seed, so that every step draws anew.

    Raises:
      ValueError: a reward that is None.
    """
    config = replace(config, seed=(config.seed * 1_000_003 + step) % 2**63)
    cells = [Cell(prompt, sample, ()) for prompt in prompts for sample in range(num_samples)]
    ended = {(c.cell.prompt.id, c.cell.sample): c for c in complete((policy,), cells, config, len(cells))}
    completions = [ended[cell.prompt.id, cell.sample] for cell in cells]
    judged = sum(np.array(reward_values(reward, completions, policy), float) for reward in rewards)
    if np.isnan(judged).any():
        raise ValueError("a reward gave None for a completion; training needs a number for each")
    batch = make_batch([c.cell.prompt.tokens[0] for c in completions], [c.tokens for c in completions])
    of_policy = np.array([c.logprobs.sum() for c in completions])
    of_reference = np.asarray(_logprobs(reference.config, reference.params, batch)).sum(axis=1)
    shape = (len(prompts), num_samples)
    return Rollout(completions, batch, judged.reshape(shape), (of_policy - of_reference).reshape(shape))


def reward_values(reward: Reward, completions: Sequence[Completion], policy: Policy) -> list[float | None]:
    """Returns what `reward` gives each completion."""
    prompts = [c.cell.prompt.prompt for c in completions]
    names = {name for prompt in prompts for name in prompt.columns}
    return reward(
        Completions(
            prompts=[prompt.text if prompt.messages is None else list(prompt.messages) for prompt in prompts],
            completions=[c.text for c in completions],
            tokens=[c.tokens[: c.length] for c in completions],
            finish_reasons=[c.finish_reason for c in completions],
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
            decode=lambda tokens: policy.tokenizer.decode(tokens, skip_special_tokens=True),
        )
    )
