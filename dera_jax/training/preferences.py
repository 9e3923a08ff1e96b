"""Alignment by preferences: DPO and its kin, with a reference that stays or follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dera_jax.data.batches import Batch, make_batch
from dera_jax.data.examples import Example, Pair
from dera_jax.models.binding import ModelConfig
from dera_jax.policies.policy import Policy
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import following, losses, parameters
from dera_jax.training.config import NORMALIZED, PreferenceConfig, TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.optimization import Loss, Terms
from dera_jax.training.reference_logprobs import reference_logprobs
from dera_jax.training.supervised import Sampler, Source, supervised


class SideBatch(NamedTuple):
    """Two completions in every row: chosen and rejected, or for KTO the prompt's own and another's."""

    both: Batch
    """With an axis of 2 behind that of the rows."""
    reference: Float[Array | np.ndarray, "rows sides"]
    """log π_ref(y|x), where the reference stays; in nats."""
    desirable: Bool[Array | np.ndarray, " rows"]
    """Of KTO."""
    weights: Float[Array | np.ndarray, " rows"]

    @property
    def mask(self) -> Bool[Array | np.ndarray, "rows sides length"]:
        """Which tokens are real."""
        return self.both.mask

    def side(self, side: int) -> "SideBatch":
        """Returns one of the completions of every row."""
        both, reference = jax.tree.map(lambda a: a[:, side : side + 1], (self.both, self.reference))
        return self._replace(both=both, reference=reference)


def preference_method(
    policy: Policy,
    reference: Policy,
    data: Sequence[Pair] | Sequence[Example],
    beta: float,
    preference: PreferenceConfig,
    config: TrainConfig,
    cache: Path,
    *,
    held_out: Sequence[Pair] | Sequence[Example] = (),
    sample: Sampler | None = None,
    progress: bool = False,
) -> Method:
    """Returns the training of `policy` on pairs, or for KTO on examples that are desirable or not.

    Args:
      beta: KL strength, > 0; one compilation serves all.
      cache: folder for the reference's log-probabilities, which are computed once.
      progress: whether a bar shows how.

    Raises:
      ValueError: a reference that should follow the policy but has another shape.
    """
    start, frozen = parameters.split(policy.params)
    constants = {"frozen": frozen, "beta": jnp.float32(beta)}
    more = {}
    if preference.sync_ref_model:
        alpha, every = preference.ref_model_mixup_alpha, preference.ref_model_sync_steps
        more = {
            "kept": {"reference": following.start(policy, reference, alpha)},
            "renew": following.follow(policy.config, alpha, every),
        }
    stays = None if preference.sync_ref_model else reference
    sources = [
        _source(policy, items, preference, stays, config, cache, progress)
        for items in (data, held_out)
        if items
    ]
    return supervised(
        start,
        sources[0],
        preference_loss(policy.config, preference),
        config,
        held_out=sources[1] if held_out else None,
        sample=sample,
        constants=constants,
        batch_mean=_divergence(policy.config) if preference.loss == "kto" else None,
        **more,
    )


def preference_loss(model: ModelConfig, preference: PreferenceConfig) -> Loss:
    """Returns the loss of log-ratios ρ = log π(y|x) − log π_ref(y|x), and what they say of the policy.

    Metrics: `accuracy` of implicit rewards β ρ, `margin` and both rewards; `pairwise_accuracy` is Eq. 14.
    """

    def loss(params: PyTree, given: dict, batch: SideBatch) -> Terms:
        beta = given["beta"]
        if preference.loss == "kto":
            return _kto(_log_ratios(model, params, given, batch.side(0))[1][:, 0], given, batch, preference)
        lengths = jnp.maximum(batch.both.completion_mask.sum(-1), 1)
        logprobs, ratio = _log_ratios(model, params, given, batch)
        chosen, rejected = (ratio / lengths if preference.loss in NORMALIZED else ratio).T
        values = (
            losses.ipo_loss(chosen, rejected, beta)
            if preference.loss == "ipo"
            else losses.dpo_loss(chosen, rejected, beta, preference.label_smoothing)
        )
        per_token = logprobs / lengths
        return Terms(
            values,
            batch.weights,
            {
                "accuracy": losses.preferred(chosen, rejected),
                "margin": beta * (chosen - rejected),
                "chosen_reward": beta * chosen,
                "rejected_reward": beta * rejected,
                "pairwise_accuracy": per_token[:, 0] > per_token[:, 1],
            },
        )

    return loss


def _divergence(model: ModelConfig) -> Loss:
    """Returns what KTO's z₀ is the mean of: log-ratios of other prompts' completions, over the whole batch."""

    def divergence(params: PyTree, given: dict, batch: SideBatch) -> Terms:
        return Terms(_log_ratios(model, params, given, batch.side(1))[1][:, 0], batch.weights)

    return divergence


def _kto(own: Array, given: dict, batch: SideBatch, preference: PreferenceConfig) -> Terms:
    kl, beta = given["batch_mean"], given["beta"]
    values = losses.kto_loss(
        own, batch.desirable, kl, beta, preference.desirable_weight, preference.undesirable_weight
    )
    return Terms(values, batch.weights, {"kl": jnp.full_like(own, jnp.maximum(kl, 0)), "reward": beta * own})


def _log_ratios(
    model: ModelConfig, params: PyTree, given: dict, batch: SideBatch
) -> tuple[Float[Array, "rows sides"], Float[Array, "rows sides"]]:
    """Returns log π(y|x) and log π(y|x) − log π_ref(y|x) of the completions of every row."""
    logprobs = _logprobs(model, parameters.whole(model, params, given["frozen"]), batch)
    of_reference = batch.reference
    if "reference" in given:
        followed = following.read(model, given["reference"], given["frozen"])
        of_reference = jax.lax.stop_gradient(_logprobs(*followed, batch))
    return logprobs, logprobs - of_reference


def _logprobs(model: ModelConfig, params: PyTree, batch: SideBatch) -> Float[Array, "rows sides"]:
    """Returns log π(y|x) of the completions of every row, read in one pass."""
    sides = batch.mask.shape[1]
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch.both)
    return completion_logprobs(model, params, flat).sum(axis=1).reshape(-1, sides)


def _source(
    policy: Policy,
    items: Sequence,
    preference: PreferenceConfig,
    reference: Policy | None,
    config: TrainConfig,
    cache: Path,
    progress: bool,
) -> Source:
    context = min(one.config.max_positions for one in (policy, reference or policy))
    sides = (
        _kto_sides(items, context)
        if preference.loss == "kto"
        else [(p.prompt, p.chosen, p.rejected) for p in items]
    )
    flat = [(prompt, completion) for prompt, *both in sides for completion in both]
    of_reference = np.zeros((len(sides), 2), np.float32)
    if reference is not None:
        found = reference_logprobs(reference, flat, config.batch_size, cache, progress=progress)
        of_reference = found.reshape(-1, 2)
    tight = not policy.config.encoder_decoder
    desirable = np.array([bool(getattr(item, "desirable", True)) for item in items])

    def make(positions: Sequence[int], rows: int) -> SideBatch:
        chosen = list(positions)
        prompts, completions = zip(*(flat[2 * i + side] for i in chosen for side in (0, 1)), strict=True)
        batch = make_batch(prompts, completions, 2 * rows, tight=tight)
        empty = rows - len(chosen)
        return SideBatch(
            both=jax.tree.map(lambda a: a.reshape(rows, 2, *a.shape[1:]), batch),
            reference=np.pad(of_reference[chosen], ((0, empty), (0, 0))),
            desirable=np.pad(desirable[chosen], (0, empty)),
            weights=np.pad(np.ones(len(chosen), np.float32), (0, empty)),
        )

    longest = [len(prompt) + max(map(len, both)) for prompt, *both in sides]
    # KTO's estimate of the divergence is of a batch: it should not be of one of like lengths.
    return Source(len(sides), make, longest, alike=preference.loss != "kto")


def _kto_sides(examples: Sequence[Example], context: int) -> list[tuple]:
    """Returns prompts with their own completion and another prompt's, which estimates the KL divergence.

    It is the next example's that has another prompt: of pairs, the next may be the other answer. Where
    all have one prompt, it is the next example's. What of it goes beyond the context is cut.
    """
    count = len(examples)
    other = [(n + 1) % count for n in range(count)]
    several = len({example.prompt for example in examples}) > 1
    # Twice from the end on, so that the last ones find the first.
    for n in [*range(count), *range(count)][::-1] if several else []:
        following = (n + 1) % count
        other[n] = following if examples[following].prompt != examples[n].prompt else other[following]
    return [
        (e.prompt, e.completion, examples[n].completion[: context + 1 - len(e.prompt)])
        for e, n in zip(examples, other, strict=True)
    ]
