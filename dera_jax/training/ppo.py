"""Alignment with a reward by proximal policy optimization (PPO, arXiv:1707.06347)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.data.batches import Batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.models.reward import RewardConfig
from dera_jax.policies.policy import Policy
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_logits, token_logprobs
from dera_jax.training import losses, parameters
from dera_jax.training.config import PPOConfig, RolloutConfig, TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.on_policy import adaptive_beta, drawer, evaluator, summary
from dera_jax.training.optimization import Terms, TrainState
from dera_jax.training.rollout import Rollout


class Experience(NamedTuple):
    """A rollout as the updates see it; in a step with one entry in front for each update."""

    batch: Batch
    logprobs: Float[Array | np.ndarray, "*updates rows completion"]
    values: Float[Array | np.ndarray, "*updates rows completion"]
    advantages: Float[Array | np.ndarray, "*updates rows completion"]
    returns: Float[Array | np.ndarray, "*updates rows completion"]
    log_ratio: Float[Array | np.ndarray, "*updates rows"]


def ppo_method(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    ppo: PPOConfig,
    config: TrainConfig,
    *,
    held_out: Sequence[EncodedPrompt] = (),
) -> Method:
    """Returns the training of `policy` by PPO.

    Token t is rewarded by −β log(π(yₜ)/π_ref(yₜ)), the last one by R(x, y) too. Advantages by GAE,
    of mean 0 and variance 1 over the rollout; the loss is that of the clipped ratio plus `vf_coef` times
    that of the clipped values.
    """
    rows, left = divmod(config.batch_size, ppo.num_mini_batches * config.gradient_accumulation_steps)
    if left or not rows:
        raise ValueError(
            f"num_mini_batches × gradient_accumulation_steps: expected a divisor of the batch size "
            f"({config.batch_size}), got {ppo.num_mini_batches} × {config.gradient_accumulation_steps}"
        )
    values = _ValueModel(policy, ppo)
    draw, drawn_last = drawer(policy, reference, prompts, rewards, rollout, config)
    permute = partial(_permutations, config, ppo)

    def loss(params: PyTree, given: dict, seen: Experience) -> Terms:
        of_policy = parameters.whole(policy.config, values.of_policy(params), given["frozen"])
        mask = seen.batch.completion_mask
        logits = completion_logits(policy.config, of_policy, seen.batch)
        logprobs = token_logprobs(logits, seen.batch)
        found = values(params, given["frozen"], seen.batch)
        of_ratio = losses.ppo_policy_loss(logprobs, seen.logprobs, seen.advantages, mask, ppo.cliprange)
        of_value = losses.ppo_value_loss(found, seen.values, seen.returns, ppo.cliprange_value)
        ratio = jnp.exp(jnp.where(mask, logprobs - seen.logprobs, 0.0))
        metrics = {
            "policy_loss": of_ratio,
            "value_loss": of_value,
            "entropy": losses.entropy(logits),
            "clipped": jnp.abs(ratio - 1) > ppo.cliprange,
        }
        return Terms(of_ratio + ppo.vf_coef * of_value, mask, metrics)

    def batches(state: TrainState, step: int) -> tuple[Experience, dict]:
        params = parameters.whole(policy.config, values.of_policy(state.params), values.frozen)
        drawn = draw(params, step)
        beta = float(state.kept.get("beta", rollout.beta))
        seen = _experience(drawn, values.read(state.params, drawn.batch), beta, ppo)
        taken = permute(step)
        seen = jax.tree.map(lambda a: a[taken], seen)
        return seen, summary(drawn) | ({"beta": beta} if state.kept else {}) | drawn.seconds

    return Method(
        values.trained,
        loss,
        batches,
        constants={"frozen": values.frozen},
        updates=ppo.num_ppo_epochs * ppo.num_mini_batches,
        evaluate=evaluator(policy, reference, held_out, rewards, rollout, values.frozen, values.of_policy),
        drawn=None if held_out else drawn_last,
        **adaptive_beta(rollout, config),
    )


class _ValueModel:
    """What predicts the reward to come; its parameters lie beside the policy's under names of their own."""

    def __init__(self, policy: Policy, ppo: PPOConfig):
        own, self.frozen = parameters.split(policy.params)
        config = policy.config
        adapters = tuple(
            replace(one, path=f"trunk.{one.path}") for one in config.adapters if one.path != "head"
        )
        self.config = RewardConfig(
            trunk=replace(config, tie_embeddings=True),
            head="each",
            dtype=config.dtype,
            quantization=config.quantization,
            adapters=adapters,
        )
        # A value of 0 everywhere to begin with: advantages are then the rewards to come.
        value = {"score.kernel": jnp.zeros((config.width, 1), jnp.float32)}
        self.shared = ppo.value_head == "shared"
        value |= {} if self.shared else _trunk(own)
        self.trained = parameters.named("policy.", own) | parameters.named("value.", value)
        self._read = jax.jit(self.__call__)

    def of_policy(self, params: PyTree) -> PyTree:
        """Returns the trained parameters that are the policy's."""
        return parameters.part("policy.", params)

    def __call__(self, params: PyTree, frozen: PyTree, batch: Batch) -> Float[Array, "rows completion"]:
        """Returns the value before each completion token."""
        own = parameters.part("value.", params) | (_trunk(self.of_policy(params)) if self.shared else {})
        model = models.bind(self.config, parameters.whole(self.config, own, _trunk(frozen)))
        mask = jnp.asarray(batch.mask) if self.config.trunk.encoder_decoder else batch.fed
        return model.completion_values(jnp.asarray(batch.tokens), mask, batch.completion_mask.shape[1])

    def read(self, params: PyTree, batch: Batch) -> Float[np.ndarray, "rows completion"]:
        """Returns the same, compiled."""
        return np.asarray(self._read(params, self.frozen, batch))


def _trunk(params: PyTree) -> PyTree:
    """Returns a language model's parameters, flat, as those of a trunk: all but the head's."""
    return parameters.named("trunk.", {n: a for n, a in params.items() if not n.startswith("head.")})


def _experience(
    rollout: Rollout, values: Float[np.ndarray, "rows completion"], beta: float, ppo: PPOConfig
) -> Experience:
    """Returns a rollout with its advantages."""
    mask = rollout.batch.completion_mask
    rewards = -beta * (rollout.logprobs - rollout.reference_logprobs)
    last = mask.sum(axis=1) - 1
    rewards[np.arange(len(last)), last] += rollout.rewards
    advantages, returns = losses.gae(rewards.astype(np.float32), values, mask, ppo.gamma, ppo.lam)
    return Experience(
        batch=rollout.batch,
        logprobs=rollout.logprobs,
        values=values,
        advantages=np.asarray(losses.whiten(advantages, mask)),
        returns=np.asarray(returns),
        log_ratio=rollout.log_ratio.astype(np.float32),
    )


def _permutations(config: TrainConfig, ppo: PPOConfig, step: int) -> np.ndarray:
    """Returns the rows of each update: every epoch takes each row once, in a new order.

    They are [updates, rows], as the step takes them, or [rows] of a single update.
    """
    random = np.random.default_rng([config.seed, step])
    epochs = [random.permutation(config.batch_size) for _ in range(ppo.num_ppo_epochs)]
    updates = np.concatenate(epochs).reshape(ppo.num_ppo_epochs * ppo.num_mini_batches, -1)
    return updates if len(updates) > 1 else updates[0]
