"""Alignment with a reward by policy gradient, held near the reference by a KL penalty of strength β."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dera_jax.common.checks import check_choice
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.policies.policy import Policy
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_logits, token_logprobs
from dera_jax.training import losses, parameters
from dera_jax.training.certificates import certifier
from dera_jax.training.config import RolloutConfig, TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.on_policy import Judged, adaptive_beta, drawer, evaluator, summary
from dera_jax.training.optimization import Terms, TrainState


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
    certificate_samples: int = 0,
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
    start, frozen = parameters.split(policy.params)
    draw, drawn_last = drawer(policy, reference, prompts, rewards, rollout, config)

    def loss(params: PyTree, given: dict, judged: Judged) -> Terms:
        params = parameters.whole(policy.config, params, given["frozen"])
        logits = completion_logits(policy.config, params, judged.batch)
        logprobs = token_logprobs(logits, judged.batch).sum(axis=1)
        values = losses.policy_gradient_loss(logprobs, judged.advantages)
        entropy = jnp.sum(losses.entropy(logits) * judged.batch.completion_mask, axis=1) * judged.token_share
        return Terms(values, jnp.ones_like(values), {"entropy": entropy})

    def batches(state: TrainState, step: int) -> tuple[Judged, dict]:
        params = parameters.whole(policy.config, state.params, frozen)
        drawn = draw(params, step)
        beta = float(state.kept.get("beta", rollout.beta))
        gains = drawn.rewards - beta * drawn.log_ratio
        groups = gains.reshape(-1, rollout.num_samples) if algorithm == "rloo" else gains[None]
        advantages = losses.leave_one_out(groups).ravel().astype(np.float32)
        mask = drawn.batch.completion_mask
        share = np.full(len(mask), len(mask) / mask.sum(), np.float32)
        judged = Judged(drawn.batch, advantages, drawn.log_ratio.astype(np.float32), share)
        return judged, summary(drawn) | ({"beta": beta} if "beta" in state.kept else {}) | drawn.seconds

    return Method(
        start,
        loss,
        batches,
        constants={"frozen": frozen},
        evaluate=evaluator(policy, reference, held_out, rewards, rollout, frozen),
        certify=certifier(
            policy, reference, held_out or prompts, rewards, rollout, config, frozen, certificate_samples
        ),
        drawn=None if held_out else drawn_last,
        **adaptive_beta(rollout, config),
    )
