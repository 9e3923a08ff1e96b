"""Rollouts: completions drawn from a policy in training, judged, with the reference's log-probabilities."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float

from dera_jax.data.batches import Batch, make_batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import prompt_text
from dera_jax.decoding.complete import Draw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
from dera_jax.policies.policy import Policy
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward, short_names
from dera_jax.rewards.together import call_all
from dera_jax.scoring.logprobs import compiled_logprobs


@dataclass(frozen=True)
class Rollout:
    """Samples of some prompts, those of one prompt behind one another."""

    completions: list[Completion]
    batch: Batch
    rewards: Float[np.ndarray, " rows"]
    logprobs: Float[np.ndarray, "rows completion"]
    """log π of each token, in nats; 0 where there is none."""
    reference_logprobs: Float[np.ndarray, "rows completion"]
    each: dict[str, Float[np.ndarray, " rows"]]
    """What every single reward gave, by its short name; `rewards` is their weighted sum."""
    seconds: dict[str, float]
    """What drawing, the reference and the rewards took."""

    @property
    def log_ratio(self) -> Float[np.ndarray, " rows"]:
        """log π(y|x) − log π_ref(y|x), in nats."""
        return (self.logprobs - self.reference_logprobs).sum(axis=1)


def draw_rollout(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[EncodedPrompt],
    num_samples: int,
    rewards: Sequence[Reward],
    config: DecodeConfig,
    step: int,
    draw: Draw = complete,
) -> Rollout:
    """Returns `num_samples` completions of each prompt; several rewards are added up by their weights.

    The policy decodes alone, one model at weight 1; the reference then reads all completions at once.

    Args:
      reference: None: the policy itself.
      step: folded into the seed, so that every step draws anew.
      draw: makes the completions.

    Raises:
      ValueError: a reward that is None or not finite; or, before anything is drawn, one that cannot judge
        such prompts.
    """
    for reward in rewards:
        reward.check([prompt_text(prompt.prompt) for prompt in prompts])
    config = replace(config, seed=(config.seed * 1_000_003 + step) % 2**63)
    requests = [Request(prompt, sample, ()) for prompt in prompts for sample in range(num_samples)]
    start = time.perf_counter()
    ended = {c.request.key: c for c in draw((policy,), requests, config, len(requests))}
    completions = [ended[request.key] for request in requests]
    drawn = time.perf_counter()
    batch = make_batch([c.request.prompt.tokens[0] for c in completions], [c.tokens for c in completions])
    logprobs = np.zeros(batch.completion_mask.shape, np.float32)
    for row, completion in enumerate(completions):
        logprobs[row, : len(completion.tokens)] = completion.logprobs
    of_reference = logprobs
    if reference is not None:
        of_reference = np.asarray(compiled_logprobs(reference.config, reference.params, batch))
    read = time.perf_counter()
    each = judge(rewards, completions, policy, step)
    judged = sum((r.weight * found for r, found in zip(rewards, each, strict=True)), np.zeros(len(requests)))
    seconds = {
        "rollout_seconds": drawn - start,
        "reference_seconds": read - drawn,
        "reward_seconds": time.perf_counter() - read,
    }
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    named = dict(zip(short_names(rewards), each, strict=True))
    return Rollout(completions, batch, judged, logprobs, of_reference, named, rounded)


def judge(
    rewards: Sequence[Reward], completions: Sequence[Completion], policy: Policy, step: int
) -> list[Float[np.ndarray, " rows"]]:
    """Returns what each reward gives each completion; raises ValueError where that is no finite number."""
    seen = seen_by_rewards(completions, policy, step)
    values = call_all(rewards, [seen] * len(rewards))
    return [_finite(*each, completions, step) for each in zip(rewards, values, strict=True)]


def _finite(
    reward: Reward, values: Sequence[float | None], completions: Sequence[Completion], step: int
) -> Float[np.ndarray, " rows"]:
    found = np.array(values, float)
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise ValueError(
            f"reward {reward.name} at step {step}: expected a finite number for each completion, found "
            f"{found[bad[0]]} for prompt {completions[bad[0]].request.prompt.id!r} ({bad.size} of {found.size})"
        )
    return found


def seen_by_rewards(completions: Sequence[Completion], policy: Policy, step: int) -> Completions:
    """Returns of completions what rewards see of a sweep's rows."""
    prompts = [c.request.prompt.prompt for c in completions]
    rows = [
        {
            "prompt": prompt_text(prompt),
            "completion": c.text,
            "tokens": c.tokens,
            "length": c.length,
            "finish_reason": c.finish_reason,
        }
        for c, prompt in zip(completions, prompts, strict=True)
    ]
    decode = partial(policy.tokenizer.decode, skip_special_tokens=True)
    return Completions.of(rows, [prompt.columns for prompt in prompts], decode, max(step, 0))
