"""Training losses, one equation each.

Each gives one value per token, completion or pair; their mean, `mean_over`, is what is minimized.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

Data = Array | np.ndarray
"""Made on the host; under jit, traced."""
Scalar = Float[Data, ""] | float
"""A coefficient; traced where a sweep varies it."""


def mean_over(
    values: Float[Array, "*shape"], weights: Bool[Data, "*shape"] | Float[Data, "*shape"]
) -> Float[Array, ""]:
    """Returns the weighted mean:  Σ wᵢ vᵢ / Σ wᵢ;  0 where nothing counts.

    Args:
      weights: ≥ 0; False or 0 for padding, whose values, even NaN, then count nothing.

    >>> float(mean_over(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    weights = jnp.asarray(weights, values.dtype)
    total = jnp.sum(weights)
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0)) / jnp.where(total > 0, total, 1.0)


def sft_loss(logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the negative log-likelihood of each completion token, in nats:  L = −log π(yₜ | x, y₍<t₎)."""
    return -logprobs


def bradley_terry_loss(
    chosen: Float[Array, " rows"],
    rejected: Float[Array, " rows"],
    margin: Float[Data, " rows"] | Scalar = 0.0,
    center: Scalar = 0.0,
) -> Float[Array, " rows"]:
    """Returns how surprised a reward model is by each preference, in nats.

    L = −log σ(r_w − r_l − m) + c (r_w + r_l)².

    Args:
      chosen: r_w, rewards of the preferred completions.
      rejected: r_l, rewards of the others.
      margin: m, how much the rewards should differ at least; in the reward's unit.
      center: c ≥ 0 draws the rewards towards a mean of 0, which preferences leave open.

    References: Bradley and Terry 1952; the margin arXiv:2307.09288, Eq. 2; centering arXiv:2312.09244.
    """
    return -jax.nn.log_sigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2


def dpo_loss(
    chosen_ratio: Float[Array, " rows"],
    rejected_ratio: Float[Array, " rows"],
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, " rows"]:
    """Returns the DPO loss of each pair, in nats.

    L = −(1 − ε) log σ(β Δ) − ε log σ(−β Δ),  Δ = ρ_w − ρ_l,  ρ = log π(y|x) − log π_ref(y|x).

    Length-normalized DPO (Tülu 3) is the same of ρ / |y|, with a larger β.

    Args:
      chosen_ratio: ρ_w of whole completions, in nats.
      rejected_ratio: ρ_l.
      beta: KL strength; > 0.
      label_smoothing: ε, the share of preferences taken to be the wrong way round; in [0, 0.5].

    References: arXiv:2305.18290, Eq. 7; label smoothing: conservative DPO (Mitchell 2023), not the
    unbiased form of arXiv:2403.00409; length: arXiv:2411.15124.
    """
    logits = beta * (chosen_ratio - rejected_ratio)
    wrong = label_smoothing
    return -(1 - wrong) * jax.nn.log_sigmoid(logits) - wrong * jax.nn.log_sigmoid(-logits)


def ipo_loss(
    chosen_ratio: Float[Array, " rows"], rejected_ratio: Float[Array, " rows"], beta: Scalar
) -> Float[Array, " rows"]:
    """Returns the IPO loss of each pair:  L = (ρ_w − ρ_l − 1 / (2β))².

    Args:
      chosen_ratio: ρ_w = (log π(y|x) − log π_ref(y|x)) / |y|, the mean of a token, in nats; the
        paper's results are of this form, though it writes sums.
      rejected_ratio: ρ_l.
      beta: the paper's τ; > 0.

    References: arXiv:2310.12036, Eq. 17.
    """
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2


def kto_loss(
    ratio: Float[Array, " rows"],
    desirable: Bool[Data, " rows"],
    kl: Scalar,
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, " rows"]:
    """Returns the KTO loss of each completion, between 0 and its weight.

    L = λ_D σ(β (z₀ − ρ)) where desirable, λ_U σ(β (ρ − z₀)) where not,  z₀ = max(kl, 0).

    Args:
      ratio: ρ = log π(y|x) − log π_ref(y|x) of whole completions, in nats.
      desirable: whether the completion is a good one.
      kl: estimate of KL(π ‖ π_ref), in nats: the mean of ρ over prompts with completions of other
        prompts. Its gradient is not taken.
      beta: KL strength; > 0.
      desirable_weight: λ_D.
      undesirable_weight: λ_U.

    References: arXiv:2402.01306, Eq. 7.
    """
    gain = beta * (ratio - jax.lax.stop_gradient(jnp.maximum(kl, 0.0)))
    return jnp.where(
        desirable, desirable_weight * jax.nn.sigmoid(-gain), undesirable_weight * jax.nn.sigmoid(gain)
    )


def preferred(
    chosen_ratio: Float[Array, " rows"], rejected_ratio: Float[Array, " rows"], noise: Scalar = 1e-4
) -> Float[Array, " rows"]:
    """Returns 1 where ρ_w > ρ_l, 0 where ρ_w < ρ_l, and ½ where they differ by rounding alone.

    Before the first step policy and reference are equal, and which of two zeros is larger says nothing.

    Args:
      noise: nats up to which two log-ratios count as equal.

    >>> [float(value) for value in preferred(jnp.array([1.0, 0.0, 2e-6]), jnp.array([0.0, 1.0, 0.0]))]
    [1.0, 0.0, 0.5]
    """
    margin = chosen_ratio - rejected_ratio
    return jnp.where(jnp.abs(margin) <= noise, 0.5, jnp.where(margin > 0, 1.0, 0.0))


def soft_update(reference: PyTree, policy: PyTree, alpha: Scalar) -> PyTree:
    """Returns a reference that follows the policy:  θ_ref ← (1 − α) θ_ref + α θ,  in its own dtype.

    α = 0 returns the reference's values, α = 1 the policy's: a hard update.

    References: trust-region alignment (TR-DPO, TR-IPO, TR-KTO), arXiv:2404.09656.
    """
    return jax.tree.map(lambda r, p: ((1 - alpha) * r + alpha * p).astype(r.dtype), reference, policy)


def policy_gradient_loss(
    logprobs: Float[Array, " rows"], advantages: Float[Data, " rows"]
) -> Float[Array, " rows"]:
    """Returns what has minus REINFORCE's gradient:  L = −A · log π(y|x).

    Args:
      logprobs: log π(y|x) of whole completions drawn from π, in nats.
      advantages: constants; R − β log(π/π_ref) less a baseline.

    References: Eq. 13.
    """
    return -advantages * logprobs


def leave_one_out(
    rewards: Float[Array | np.ndarray, "prompts samples"],
) -> Float[Array | np.ndarray, "prompts samples"]:
    """Returns each sample's reward less the mean of the prompt's other samples.

    Aᵢ = rᵢ − Σ_{j≠i} rⱼ / (n − 1).  The baseline does not depend on sample i, so the gradient stays
    unbiased. Needs at least two samples.

    >>> leave_one_out(np.array([[1.0, 0.0, 0.0]]))
    array([[ 1. , -0.5, -0.5]])
    """
    n = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (n / (n - 1))


def ppo_policy_loss(
    logprobs: Float[Array, "rows completion"],
    old_logprobs: Float[Data, "rows completion"],
    advantages: Float[Data, "rows completion"],
    mask: Bool[Data, "rows completion"],
    clip_range: Scalar,
) -> Float[Array, "rows completion"]:
    """Returns the clipped policy loss of PPO for each token.

    L = −min(ρₜ Aₜ, clip(ρₜ, 1 − ε, 1 + ε) Aₜ),  ρₜ = π(yₜ | x, y₍<t₎) / π_old(yₜ | x, y₍<t₎).

    Args:
      logprobs: log π of the tokens, in nats.
      old_logprobs: of the policy that drew them; constants.
      advantages: Aₜ; constants.
      clip_range: ε > 0.

    References: arXiv:1707.06347, Eq. 7.
    """
    # Before exp: what stands in padding could overflow, and 0 · inf is NaN in the gradient.
    ratio = jnp.exp(jnp.where(mask, logprobs - old_logprobs, 0.0))
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def ppo_value_loss(
    values: Float[Array, "rows completion"],
    old_values: Float[Data, "rows completion"],
    returns: Float[Data, "rows completion"],
    clip_range_value: Scalar,
) -> Float[Array, "rows completion"]:
    """Returns the clipped value loss of PPO for each token.

    L = ½ max((Vₜ − Rₜ)², (V_old,t + clip(Vₜ − V_old,t, −ε, ε) − Rₜ)²).

    Args:
      values: Vₜ, before token t is drawn; in the reward's unit.
      old_values: of the rollout; constants.
      returns: Rₜ of `gae`; constants.
      clip_range_value: ε > 0, in the reward's unit; infinite for no clipping.

    References: the clipping of OpenAI's baselines, as arXiv:1909.08593 trains.
    """
    clipped = old_values + jnp.clip(values - old_values, -clip_range_value, clip_range_value)
    return 0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def gae(
    rewards: Float[Data, "rows completion"],
    values: Float[Data, "rows completion"],
    mask: Bool[Data, "rows completion"],
    gamma: Scalar,
    lam: Scalar,
) -> tuple[Float[Array, "rows completion"], Float[Array, "rows completion"]]:
    """Returns generalized advantages and the returns that values should predict; 0 in padding.

    Aₜ = δₜ + γλ Aₜ₊₁,  δₜ = rₜ + γ Vₜ₊₁ − Vₜ,  Rₜ = Aₜ + Vₜ;  V and A are 0 after the last token.

    Args:
      rewards: rₜ for drawing token t, the whole completion's reward at its last.
      values: Vₜ, before token t is drawn.
      mask: of completions padded on the right.
      gamma: discount in [0, 1].
      lam: λ in [0, 1]: 0 trusts the values, 1 the rewards. Not DeRa's strength.

    References: arXiv:1506.02438, Eq. 16.
    """
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    # Of the next token: [V₁, V₂, …, 0].
    delta = rewards + gamma * jnp.pad(values[:, 1:], ((0, 0), (0, 1))) - values

    def step(later, delta):
        advantage = delta + gamma * lam * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(delta[:, 0]), delta.T, reverse=True)
    return advantages.T, advantages.T + values


def whiten(values: Float[Data, "*shape"], mask: Bool[Data, "*shape"]) -> Float[Array, "*shape"]:
    """Returns values of mean 0 and variance 1 over the real tokens:  (v − μ) / √(σ² + 10⁻⁸);  0 in padding."""
    centered = values - mean_over(jnp.asarray(values), mask)
    return jnp.where(mask, centered * jax.lax.rsqrt(mean_over(centered**2, mask) + 1e-8), 0.0)


def entropy(logits: Float[Array, "*rows vocab"]) -> Float[Array, " *rows"]:
    """Returns the entropy of next-token distributions, in nats:  H = log Z − Σᵥ p(v) h(v).

    A word with a logit of −inf counts nothing.
    """
    probabilities = jax.nn.softmax(logits)
    expected = jnp.sum(probabilities * jnp.where(probabilities > 0, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def next_word_kl(
    logits: Float[Array, "*rows vocab"], reference: Float[Array, "*rows vocab"]
) -> Float[Array, " *rows"]:
    """Returns the divergence of next-word distributions, in nats:  KL(π ‖ π_ref) = Σᵥ π(v) log(π(v)/π_ref(v)).

    Its gradient is that of the divergence. A word with a logit of −inf under π counts nothing.

    References: Rao-Blackwellized estimates of the divergence of texts, arXiv:2504.10637.
    """
    ours, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    drawn = ours > -jnp.inf
    return jnp.sum(jnp.exp(ours) * jnp.where(drawn, jnp.where(drawn, ours, 0.0) - theirs, 0.0), axis=-1)


def next_beta(beta: Scalar, kl: Scalar, target: Scalar, horizon: Scalar, batch: Scalar) -> Scalar:
    """Returns the β of the next step, which draws the KL divergence towards its target.

    β ← β (1 + e · n / H),  e = clip(KL / KL* − 1, −0.2, 0.2).

    Args:
      kl: of this step's completions against the reference, in nats per completion.
      target: KL* > 0.
      horizon: H, completions in which β can grow by about 20 %.
      batch: n, completions of a step.

    References: arXiv:1909.08593, §2.2, with K_β = n / H.
    """
    return beta * (1 + jnp.clip(kl / target - 1, -0.2, 0.2) * batch / horizon)


def value_loss(values: Float[Array, "*shape"], targets: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the squared error of each value:  L = (V − target)²,  least where V is the target's mean."""
    return (values - targets) ** 2


def expected_value(
    logits: Float[Array, "*rows vocab"], values: Float[Array, "*rows vocab"]
) -> Float[Array, "*rows"]:
    """Returns what the next word is worth on average:  Σᵥ π_ref(v) V(v)."""
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * values, axis=-1)


def next_value_targets(
    expected: Float[Array, "rows tokens"], rewards: Float[Array, " rows"], mask: Bool[Data, "rows tokens"]
) -> Float[Array, "rows tokens"]:
    """Returns the target of each token's value:  E_{v∼π_ref(·|x, y₍≤t₎)}[V(hₜ, v)],  and R at the last token.

    Args:
      expected: `expected_value` where each token was drawn; the next token's is this one's target.
      mask: of the completions, whose tokens stand behind one another from the first place on.

    References: Mudgal et al., arXiv:2310.17022, Eq. 5.
    """
    following = jnp.pad(jnp.asarray(mask)[:, 1:], ((0, 0), (0, 1)))
    later = jnp.pad(expected[:, 1:], ((0, 0), (0, 1)))
    return jnp.where(following, later, rewards[:, None])
