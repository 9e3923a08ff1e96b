"""The method: next-token logits of several policies, mixed at a strength chosen when decoding.

An aligned model trained with KL strength β and its reference are enough for every other strength:
mixing their logits with weights (1 − λ, λ) approximates the model that training at β/λ would give.

References: Liu et al., "Decoding-time Realignment of Language Models", arXiv:2402.02992.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def strength_weights(lambda_: Sequence[float] | Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Returns the weight of each policy, the reference first:  w = (1 − Σᵢ λᵢ, λ₁, …, λ_K).

    Args:
      lambda_: strength of each aligned policy, any real numbers; rows of them give rows of weights.

    >>> strength_weights([0.25])
    array([0.75, 0.25], dtype=float32)

    References: Eq. 9; Appendix B for several aligned policies.
    """
    # In float64, so that the weights are the nearest float32 numbers to the exact ones.
    lambda_ = np.asarray(lambda_, np.float64)
    reference = 1.0 - lambda_.sum(axis=-1, keepdims=True)
    return np.concatenate([reference, lambda_], axis=-1).astype(np.float32)


def mix_logits(
    logits: Float[Array, "models *rows vocab"],
    weights: Float[Array, "*rows models"],
) -> Float[Array, "*rows vocab"]:
    """Returns next-token logits of the policy realigned by `weights`.

    Computes, for each row,  h = Σₘ wₘ hₘ.  With two models and w = (1 − λ, λ) this is
    decoding-time realignment, h(λ) = (1 − λ) h_ref + λ h_aligned: softmax(h(λ)) is the per-token
    geometric mixture π_ref^{1−λ} π_aligned^λ. λ = 0 and λ = 1 return the reference's and the
    aligned model's logits bit for bit. λ < 0 moves away from the aligned model.

    Logits must be finite: mask tokens in the result, not in the inputs (0 · −inf is NaN).

    Args:
      logits: of each model, in float32; the reference first.
      weights: of each model in each row; they sum to 1.

    References: Eq. 9 (Proposition 1), Appendix B.
    """
    # Multiply and add, not a matrix product: that would run in bfloat16 on a TPU and in TF32 on a GPU.
    h = weights[..., 0, None] * logits[0]
    for m in range(1, len(logits)):
        h = h + weights[..., m, None] * logits[m]
    return h


def log_normalizer(
    log_partition: Float[Array, " *rows"],
    log_partitions: Float[Array, "models *rows"],
    weights: Float[Array, "*rows models"],
) -> Float[Array, " *rows"]:
    """Returns log z, the log mass of the mixture before it was normalized over the vocabulary.

    z = Σᵥ Πₘ πₘ(v)^{wₘ}, so  log z = log Z_mix − Σₘ wₘ log Zₘ  with Z the partition functions
    Σᵥ exp h(v). z ≤ 1 for 0 ≤ λ ≤ 1 and z ≥ 1 outside (Hölder).

    The optimum for β/λ (Eq. 5) normalizes over whole responses, the mixture of logits (Eq. 6)
    token by token; Σₜ log zₜ is the log importance weight of a completion that turns one into the other.

    Args:
      log_partition: log Z_mix, of the mixed logits, in nats.
      log_partitions: log Zₘ of each model, in nats.
      weights: of each model, as given to `mix_logits`.
    """
    return log_partition - jnp.sum(jnp.moveaxis(weights, -1, 0) * log_partitions, axis=0)


def effective_beta(beta: float, lambda_: float) -> float:
    """Returns β/λ, the KL strength that realigning a model of strength β by λ stands for (Eq. 5).

    λ = 0 is the reference, β/λ = ∞. Negative λ has no such strength: NaN.
    """
    if lambda_ < 0:
        return float("nan")
    return beta / lambda_ if lambda_ else float("inf")


def linear_rule(
    logits: Float[Array, "models rows vocab"],
    weights: Float[Array, "rows models"],
    state: None,
) -> tuple[Float[Array, "rows vocab"], None]:
    """The default rule: the mixture itself.

    A rule turns the models' logits into the logits to draw from; `--rule=module:function` puts
    another in its place. It is pure, sees the whole vocabulary, and may carry a state: then it has
    an attribute `initial_state`, a function from the number of rows to arrays of that many rows.
    """
    return mix_logits(logits, weights), state


def is_mixture(rule) -> bool:
    """Whether `rule` is the linear mixture, for which log z is defined."""
    return rule is linear_rule
