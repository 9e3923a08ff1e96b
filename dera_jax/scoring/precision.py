"""What a lower precision costs: how far each model, and the mixture at each strength, moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.analysis.estimates import Estimate, estimate
from dera_jax.data.batches import Batch, make_batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.policies.policy import Policy
from dera_jax.policies.value_heads import check_language_models
from dera_jax.realign import mix_centered, strength_weights
from dera_jax.scoring.logprobs import completion_logits
from dera_jax.strengths import Strength


@dataclass(frozen=True)
class Cost:
    """What the mixture at one strength lost."""

    lambda_: Strength
    kl: Estimate
    """KL(lower ‖ full) per token, in nats."""
    amplification: float
    """Σₘ |wₘ|, 1 within [0, 1] and |λ| + |1 − λ| for a pair: what errors of logits are multiplied by, at most."""
    same_choice: Estimate
    """Share of tokens where both hold the same token for the most probable."""


def precision_cost(
    full: Sequence[Policy],
    lower: Sequence[Policy],
    texts: Sequence[EncodedPrompt],
    lambdas: Sequence[Strength],
    rows: int,
) -> list[Cost]:
    """Returns what is lost at each strength where `lower` stand in for `full`.

    Every token of a text but the first is a place where the distributions are compared, over the
    whole vocabulary. λ = 0 is the reference alone and λ = 1 the aligned model alone.

    Args:
      full: of `load_policies`, the reference first.
      lower: the same models, quantized or of another type.
      texts: of `divergence.encode_texts`.
      rows: of a batch; four models' logits are held at once.
    """
    check_language_models(full)
    weights = strength_weights(lambdas)
    kls, same, groups = [], [], []
    for start in range(0, len(texts), rows):
        part = texts[start : start + rows]
        batches = tuple(
            make_batch([t.tokens[m][:1] for t in part], [t.tokens[m][1:] for t in part], rows)
            for m in range(len(full))
        )
        kl, agree = jax.device_get(
            _compare(_configs(full), _configs(lower), _params(full), _params(lower), batches, weights)
        )
        there = batches[0].completion_mask
        kls.append(kl[:, there])
        same.append(agree[:, there])
        groups.append(start + np.nonzero(there)[0])
    kls, same, groups = np.concatenate(kls, 1), np.concatenate(same, 1), np.concatenate(groups).tolist()
    return [
        Cost(
            lambda_=strength,
            kl=estimate(kls[number].tolist(), groups),
            amplification=float(np.abs(weights[number]).sum()),
            same_choice=estimate(same[number].astype(float).tolist(), groups),
        )
        for number, strength in enumerate(lambdas)
    ]


def _configs(policies: Sequence[Policy]) -> tuple[models.ModelConfig, ...]:
    return tuple(policy.config for policy in policies)


def _params(policies: Sequence[Policy]) -> tuple[PyTree, ...]:
    return tuple(policy.params for policy in policies)


# Static: configs. Traced: all else; the strengths one after the other, so that memory is that of one.
@partial(jax.jit, static_argnames=("full_configs", "lower_configs"))
def _compare(
    full_configs: tuple[models.ModelConfig, ...],
    lower_configs: tuple[models.ModelConfig, ...],
    full: Sequence[PyTree],
    lower: Sequence[PyTree],
    batches: Sequence[Batch],
    weights: Float[Array | np.ndarray, "strengths models"],
) -> tuple[Array, Array]:
    """Returns KL(lower ‖ full) and whether the most probable token is the same, [strengths, rows, tokens]."""

    def logits(configs, params):
        each = [completion_logits(c, p, b) for c, p, b in zip(configs, params, batches, strict=True)]
        vocab = min(h.shape[-1] for h in each)
        return jnp.stack([h[..., :vocab] for h in each])

    exact, rounded = logits(full_configs, full), logits(lower_configs, lower)

    def at_strength(strength):
        everywhere = jnp.broadcast_to(strength, (*exact.shape[1:3], *strength.shape))
        of_full, of_lower = (jax.nn.log_softmax(mix_centered(h, everywhere)) for h in (exact, rounded))
        kl = jnp.sum(jnp.exp(of_lower) * (of_lower - of_full), axis=-1)
        return kl, of_full.argmax(-1) == of_lower.argmax(-1)

    return jax.lax.map(at_strength, jnp.asarray(weights))
