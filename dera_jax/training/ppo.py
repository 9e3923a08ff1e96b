"""Alignment with a reward by proximal policy optimization (PPO, arXiv:1707.06347)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax.data.batches import Batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.policies.policy import Policy
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_logits, token_logprobs
from dera_jax.training import losses, parameters
from dera_jax.training.certificates import certifier
from dera_jax.training.config import PPOConfig, RolloutConfig, TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.on_policy import adaptive_beta, drawer, evaluator, summary
from dera_jax.training.optimization import Terms, TrainState
from dera_jax.training.rollout import Rollout
from dera_jax.training.value_models import POLICY, VALUE, make_value_model, reader


class Experience(NamedTuple):
    """A rollout as the updates see it; in a step with one entry in front for each update."""

    batch: Batch
    logprobs: Float[Array | np.ndarray, "*updates rows completion"]
    values: Float[Array | np.ndarray, "*updates rows completion"]
    advantages: Float[Array | np.ndarray, "*updates rows completion"]
    returns: Float[Array | np.ndarray, "*updates rows completion"]
    log_ratio: Float[Array | np.ndarray, "*updates rows"]
    learns: Float[Array | np.ndarray, "*updates rows"]
    """1; 0 where only the value model learns yet."""
    read: Float[Array | np.ndarray, "*updates rows completion width"] | None
    """What the value model reads, if not the texts."""
    kl_weight: Float[Array | np.ndarray, "*updates rows"]
    """Of the exact KL divergence in the loss, in units of the advantages: β over their standard deviation."""


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
    certificate_samples: int = 0,
) -> Method:
    """Returns the training of `policy` by PPO.

    Token t is rewarded by −β log(π(yₜ)/π_ref(yₜ)), the last one by R(x, y) too. Advantages by GAE,
    of mean 0 and variance 1 over the rollout; the loss is that of the clipped ratio plus `vf_coef` times
    that of the clipped values. In the first `value_warmup_steps` steps the policy stays as it is.

    With the estimator `exact` a token costs β KL(π ‖ π_ref) of the next word, and the gradient of that divergence is
    taken itself: the same gradient on average, without the noise of the one word that was drawn.
    """
    rows, left = divmod(config.batch_size, ppo.num_mini_batches * config.gradient_accumulation_steps)
    if left or not rows:
        raise ValueError(
            f"num_mini_batches × gradient_accumulation_steps: expected a divisor of the batch size "
            f"({config.batch_size}), got {ppo.num_mini_batches} × {config.gradient_accumulation_steps}"
        )
    own, frozen = parameters.split(policy.params)
    values = make_value_model(policy, reference, ppo, own, rollout.decode.max_new_tokens)
    read_values = reader(values, frozen)
    draw, drawn_last = drawer(policy, reference, prompts, rewards, rollout, config)
    permute, exact = partial(_permutations, config, ppo), ppo.kl_estimator == "exact"
    of_own = partial(parameters.part, POLICY)

    def loss(params: PyTree, given: dict, seen: Experience) -> Terms:
        found = values(params, given["frozen"], seen.batch, seen.read)
        of_value = losses.ppo_value_loss(found, seen.values, seen.returns, ppo.cliprange_value)
        metrics = of_policy(params, given, seen) | {"value_loss": of_value}
        mask = seen.batch.completion_mask
        return Terms(metrics["policy_loss"] + ppo.vf_coef * of_value, mask, metrics)

    def of_policy(params: PyTree, given: dict, seen: Experience) -> dict:
        if not ppo.value_warmup_steps:
            return policy_terms(params, given, seen)
        shapes = jax.eval_shape(policy_terms, params, given, seen)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        learns = jnp.any(seen.learns > 0)
        return jax.lax.cond(learns, policy_terms, lambda *_: nothing, params, given, seen)

    def policy_terms(params: PyTree, given: dict, seen: Experience) -> dict:
        whole = parameters.whole(policy.config, parameters.part(POLICY, params), given["frozen"])
        mask = seen.batch.completion_mask
        logits = completion_logits(policy.config, whole, seen.batch)
        logprobs = token_logprobs(logits, seen.batch)
        ratio = jnp.exp(jnp.where(mask, logprobs - seen.logprobs, 0.0))
        of_ratio = losses.ppo_policy_loss(logprobs, seen.logprobs, seen.advantages, mask, ppo.cliprange)
        if exact:
            compared = completion_logits(reference.config, given["reference"], seen.batch)
            of_ratio += seen.kl_weight[:, None] * losses.next_word_kl(logits, compared)
        return {
            "policy_loss": of_ratio,
            "entropy": losses.entropy(logits),
            "clipped": jnp.abs(ratio - 1) > ppo.cliprange,
        }

    def batches(state: TrainState, step: int) -> tuple[Experience, dict]:
        params = parameters.whole(policy.config, parameters.part(POLICY, state.params), frozen)
        drawn = draw(params, step)
        beta = float(state.kept.get("beta", rollout.beta))
        read = values.reads(drawn.batch)
        kl = drawn.logprobs - drawn.reference_logprobs
        if exact:
            kl = np.asarray(_kl(policy.config, params, reference.config, reference.params, drawn.batch))
        seen = _experience(drawn, kl, read_values(state.params, drawn.batch, read), beta, ppo)
        learns = np.full(len(seen.log_ratio), step >= ppo.value_warmup_steps, np.float32)
        seen = seen._replace(read=read, learns=learns)
        taken = permute(step)
        seen = jax.tree.map(lambda a: a[taken], seen)
        return seen, summary(drawn) | ({"beta": beta} if "beta" in state.kept else {}) | drawn.seconds

    return Method(
        parameters.named(POLICY, own) | values.trained,
        loss,
        batches,
        constants={"frozen": frozen} | ({"reference": reference.params} if exact else {}),
        updates=ppo.num_ppo_epochs * ppo.num_mini_batches,
        rates=_rates(ppo, config),
        evaluate=evaluator(policy, reference, held_out, rewards, rollout, frozen, of_own),
        certify=certifier(
            policy,
            reference,
            held_out or prompts,
            rewards,
            rollout,
            config,
            frozen,
            certificate_samples,
            of_own,
        ),
        drawn=None if held_out else drawn_last,
        **adaptive_beta(rollout, config),
    )


def _experience(
    rollout: Rollout,
    kl: Float[np.ndarray, "rows completion"],
    values: Float[np.ndarray, "rows completion"],
    beta: float,
    ppo: PPOConfig,
) -> Experience:
    """Returns a rollout with its advantages; `kl` is what each token costs, in nats."""
    mask = rollout.batch.completion_mask
    rewards = -beta * kl
    last = mask.sum(axis=1) - 1
    rewards[np.arange(len(last)), last] += rollout.rewards
    advantages, returns = losses.gae(rewards.astype(np.float32), values, mask, ppo.gamma, ppo.lam)
    if ppo.value_lam is not None:
        _, returns = losses.gae(rewards.astype(np.float32), values, mask, ppo.gamma, ppo.value_lam)
    spread = float(np.asarray(advantages)[mask].std())
    return Experience(
        batch=rollout.batch,
        logprobs=rollout.logprobs,
        values=values,
        advantages=np.asarray(losses.whiten(advantages, mask)),
        returns=np.asarray(returns),
        log_ratio=rollout.log_ratio.astype(np.float32),
        learns=np.ones(len(last), np.float32),
        read=None,
        kl_weight=np.full(len(last), beta / max(spread, 1e-6), np.float32),
    )


@partial(jax.jit, static_argnames=("config", "reference_config"))
def _kl(config, params: PyTree, reference_config, reference_params: PyTree, batch: Batch) -> Array:
    """Returns KL(π ‖ π_ref) of the next word where each token was drawn, in nats; 0 in padding."""
    logits = completion_logits(config, params, batch)
    compared = completion_logits(reference_config, reference_params, batch)
    return jnp.where(batch.completion_mask, losses.next_word_kl(logits, compared), 0.0)


def _rates(ppo: PPOConfig, config: TrainConfig) -> dict[str, float]:
    """Returns how much faster the value model learns than the policy, if its rate is another one."""
    rate = ppo.value_learning_rate
    if rate is None:
        return {}
    if not config.learning_rate:
        raise ValueError(f"learning_rate: expected a number above 0 beside value_learning_rate={rate:g}")
    return {VALUE: rate / config.learning_rate}


def _permutations(config: TrainConfig, ppo: PPOConfig, step: int) -> np.ndarray:
    """Returns the rows of each update: every epoch takes each row once, in a new order.

    They are [updates, rows], as the step takes them, or [rows] of a single update.
    """
    random = np.random.default_rng([config.seed, step])
    epochs = [random.permutation(config.batch_size) for _ in range(ppo.num_ppo_epochs)]
    updates = np.concatenate(epochs).reshape(ppo.num_ppo_epochs * ppo.num_mini_batches, -1)
    return updates if len(updates) > 1 else updates[0]
