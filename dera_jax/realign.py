"""The method: next-token logits of several policies, mixed at a strength chosen when decoding.

An aligned model trained with KL strength β and its reference are enough for every other strength:
mixing their logits with weights (1 − λ, λ) approximates the model that training at β/λ would give.

References: Liu et al., "Decoding-time Realignment of Language Models", arXiv:2402.02992.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

LARGE = 16.0
"""Weights beyond it, in absolute value, are those of a mixture that is computed as a step from the reference:
Σₘ wₘ hₘ would be a small difference of large numbers."""
Weights = Float[Array | np.ndarray, "*rows models"]
"""Of each model in each row, as `strength_weights` gives them."""


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
    weights: Weights,
) -> Float[Array, "*rows vocab"]:
    """Returns next-token logits of the policy realigned by `weights`.

    Computes, for each row,  h = Σₘ wₘ hₘ.  With two models and w = (1 − λ, λ) this is
    decoding-time realignment, h(λ) = (1 − λ) h_ref + λ h_aligned: softmax(h(λ)) is the per-token
    geometric mixture π_ref^{1−λ} π_aligned^λ. λ = 0 and λ = 1 return the reference's and the
    aligned model's logits bit for bit. λ < 0 moves away from the aligned model.

    Logits must be finite: mask tokens in the result, not in the inputs (0 · −inf is NaN).

    Float32 has 24 bits: where a weight is large, h is known to about 10⁻⁷ of it, not to 10⁻⁷. `mix_centered`
    has no such error.

    Args:
      logits: of each model, in float32; the reference first.
      weights: of each model in each row; they sum to 1.

    References: Eq. 9 (Proposition 1), Appendix B.
    """
    if len(logits) == 1:
        return _added(logits, weights)
    step = logits[0]
    for m in range(1, len(logits)):
        step = step + rounded(weights[..., m, None] * (logits[m] - logits[0]))
    return jnp.where(is_large(weights)[..., None], step, _added(logits, weights))


def _added(logits: Float[Array, "models *rows vocab"], weights: Weights) -> Array:
    # Multiply and add, not a matrix product: that would run in bfloat16 on a TPU and in TF32 on a GPU.
    h = rounded(weights[..., 0, None] * logits[0])
    for m in range(1, len(logits)):
        h = h + rounded(weights[..., m, None] * logits[m])
    return h


def rounded(product: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns a product as float32 rounds it, whatever is added to it.

    A compiler may keep all bits of a product that it adds in one instruction, and does so in one program and not
    in another: rows would depend on what else is computed beside them. It cannot through a selection.
    """
    return jnp.where(jnp.isnan(product), jnp.nan, product)


def is_large(weights: Weights) -> Bool[Array, " *rows"]:
    """Returns whether a mixture is one of large weights, see `LARGE`."""
    return jnp.max(jnp.abs(weights), axis=-1) > LARGE


def mix_centered(
    logits: Float[Array, "models *rows vocab"],
    weights: Weights,
) -> Float[Array, "*rows vocab"]:
    """Returns what `mix_logits` does, bit for bit where no weight is large; else less a constant of each row.

    The constant is that of the words that the step λ (h_aligned − h_ref) leads to. What is left of their
    logits is small, and with the differences' rounding errors added back it is exact to float32's precision at
    any λ; with several aligned models, to 10⁻⁷ of λ.

    Args:
      logits: as of `mix_logits`.
      weights: likewise.
    """
    plain = _added(logits, weights)
    if len(logits) == 1:
        return plain
    size = jnp.maximum(jnp.max(jnp.abs(weights[..., 1:]), axis=-1), 1.0)[..., None]
    high, low = jnp.zeros_like(plain), jnp.zeros_like(plain)
    for m in range(1, len(logits)):
        # One aligned model has a share of ±1, which rounds nothing.
        share = weights[..., m, None] / size
        difference, rest = _difference(logits[m], logits[0])
        high, low = high + rounded(share * difference), low + rounded(share * rest)
    step = rounded(size * ((high - jnp.max(high, axis=-1, keepdims=True)) + low))
    return jnp.where(is_large(weights)[..., None], logits[0] + step, plain)


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns a − b as float32 has it, and what that left out (Knuth, TAOCP 2, §4.2.2)."""
    found = a - b
    of_b = found - a
    return found, (a - (found - of_b)) - (b + of_b)


def log_normalizer(
    log_partition: Float[Array, " *rows"],
    log_partitions: Float[Array, "models *rows"],
    weights: Weights,
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
    return log_partition - jnp.sum(rounded(jnp.moveaxis(weights, -1, 0) * log_partitions), axis=0)


def effective_beta(beta: float, lambda_: float) -> float:
    """Returns β/λ, the KL strength that realigning a model of strength β by λ stands for (Eq. 5).

    λ = 0 is the reference, β/λ = ∞. Negative λ has no such strength: NaN.
    """
    if lambda_ < 0:
        return float("nan")
    return beta / lambda_ if lambda_ else float("inf")
