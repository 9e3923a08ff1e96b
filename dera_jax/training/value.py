"""Training of value heads: what a completion of a frozen language model will be worth, word by word."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.models.value import HEAD
from dera_jax.policies.policy import Policy
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_hidden
from dera_jax.training import losses, parameters
from dera_jax.training.config import RolloutConfig, TrainConfig, ValueTraining
from dera_jax.training.loop import Method
from dera_jax.training.on_policy import drawer, summary
from dera_jax.training.optimization import Terms, TrainState, make_evaluation
from dera_jax.training.rollout import Rollout, draw_rollout

HELD_OUT = -1
"""In the place of a step, where completions of held-out prompts are drawn."""


class Valued(NamedTuple):
    """Completions as the frozen model has read them; in a step of several updates with one entry in front for each."""

    hidden: Float[Array | np.ndarray, "*updates rows tokens width"]
    """What the model's own head read where each token was drawn."""
    words: Int[Array | np.ndarray, "*updates rows tokens"]
    """The tokens."""
    mask: Bool[Array | np.ndarray, "*updates rows tokens"]
    rewards: Float[Array | np.ndarray, "*updates rows"]
    """Of the whole completions."""


def value_method(
    value: Policy,
    reference: Policy,
    prompts: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    training: ValueTraining,
    config: TrainConfig,
    *,
    held_out: Sequence[EncodedPrompt] = (),
) -> Method:
    """Returns the training of a value head on completions that the reference draws.

    `fudge` minimizes  (V(hₜ₋₁, yₜ) − R)²  at every token, `cd-q` the squared distance to E_{v∼π_ref}[V(hₜ, v)] and,
    at the last token, to R. Both are least for V = E[R | x, y₍≤t₎].

    Args:
      value: of `fresh_value_head`, on the reference.
      rollout: how completions are drawn; its β has no effect.

    References: Yang & Klein, arXiv:2104.05218; Mudgal et al., arXiv:2310.17022, Eqs. 4 and 5.
    """
    start, frozen = parameters.split_head(value.params, HEAD)
    draw, _ = drawer(reference, None, prompts, rewards, rollout, config)

    def loss(params: PyTree, given: dict, seen: Valued) -> Terms:
        model = models.bind(value.config, parameters.whole(value.config, params, given["frozen"]))
        values = model.logits(seen.hidden)
        chosen = jnp.take_along_axis(values, seen.words[..., None], axis=-1)[..., 0]
        returns = jnp.broadcast_to(seen.rewards[:, None], chosen.shape)
        targets = returns
        if training.method == "cd-q":
            expected = losses.expected_value(model.language_logits(seen.hidden), values)
            targets = losses.next_value_targets(expected, seen.rewards, seen.mask)
        metrics = {"value": chosen, "error": losses.value_loss(chosen, returns)}
        return Terms(losses.value_loss(chosen, jax.lax.stop_gradient(targets)), seen.mask, metrics)

    def batches(_: TrainState, step: int) -> tuple[Valued, dict]:
        drawn = draw(reference.params, step)
        seen = read_rollout(reference, drawn)
        told = summary(drawn) | {n: s for n, s in drawn.seconds.items() if n != "reference_seconds"}
        del told["kl"]  # of the reference from itself
        told["reward_variance"] = _variance([drawn])
        return _repeated(seen, training.num_epochs), told

    return Method(
        start,
        loss,
        batches,
        constants={"frozen": frozen},
        updates=training.num_epochs,
        evaluate=_evaluator(reference, held_out, rewards, rollout, config, make_evaluation(loss)),
    )


def read_rollout(reference: Policy, rollout: Rollout) -> Valued:
    """Returns a rollout as the reference reads it, once for all updates: it is frozen."""
    batch = rollout.batch
    hidden = _hidden(reference.config, reference.params, batch)
    return Valued(
        np.asarray(hidden),
        np.asarray(batch.completions),
        np.asarray(batch.completion_mask),
        rollout.rewards.astype(np.float32),
    )


_hidden = jax.jit(completion_hidden, static_argnames="config")


def explained_variance(error: float, variance: float) -> float | None:
    """Returns  1 − E[(V − R)²] / Var R,  at most 1 and 0 of the mean reward; None where R does not vary."""
    return 1.0 - error / variance if variance > 0 else None


def _evaluator(
    reference: Policy,
    held_out: Sequence[EncodedPrompt],
    rewards: Sequence[Reward],
    rollout: RolloutConfig,
    config: TrainConfig,
    evaluate_batch: Callable,
):
    """Returns what tells the figures on completions of the held-out prompts, drawn once; None without any."""
    if not held_out:
        return None
    drawn: list[Rollout] = []
    size = max(1, config.batch_size // rollout.num_samples)

    def evaluate(state: TrainState, constants: dict) -> tuple[dict, list[dict]]:
        if not drawn:
            parts = [held_out[start : start + size] for start in range(0, len(held_out), size)]
            drawn.extend(
                draw_rollout(reference, None, part, rollout.num_samples, rewards, rollout.decode, HELD_OUT)
                for part in parts
            )
        found = [
            jax.device_get(evaluate_batch(state, constants, read_rollout(reference, one))) for one in drawn
        ]
        weight = sum(float(count) for _, count in found)
        means: dict[str, float | None] = {
            name: sum(float(sums[name]) for sums, _ in found) / weight for name in ("loss", "error", "value")
        }
        means |= {
            "explained_variance": explained_variance(means["error"], _variance(drawn)),
            "reward": float(np.concatenate([one.rewards for one in drawn]).mean()),
        }
        return {f"eval_{name}": each for name, each in means.items()}, []

    return evaluate


def _variance(drawn: Sequence[Rollout]) -> float:
    """Returns the variance of the reward over the tokens of all completions, the error of a constant value."""
    rewards = np.concatenate([one.rewards for one in drawn])
    tokens = np.concatenate([one.batch.completion_mask.sum(axis=1) for one in drawn])
    return float(np.average((rewards - np.average(rewards, weights=tokens)) ** 2, weights=tokens))


def _repeated(seen: Valued, updates: int) -> Valued:
    """Returns a batch with one entry in front for each update, as the step takes them, or of a single one itself."""
    if updates == 1:
        return seen
    return jax.tree.map(lambda a: np.broadcast_to(a, (updates, *np.shape(a))), seen)
