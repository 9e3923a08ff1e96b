"""Settings of trainings."""

import math
from dataclasses import dataclass

from dera_jax.common.checks import (
    MOST,
    check_choice,
    check_count,
    check_number,
    check_seed,
    take_plain_numbers,
)
from dera_jax.common.choices import REPORTERS, one_of
from dera_jax.decoding.config import DecodeConfig

LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "kto")
NORMALIZED = ("sigmoid_norm", "ipo")
"""Losses of log-ratios per token."""
SCHEDULES = ("constant", "linear", "cosine")
VALUE_HEADS = ("own", "shared", "reference")
KL_ESTIMATORS = ("sampled", "exact")
VALUE_METHODS = ("fudge", "cd-q")


@dataclass(frozen=True)
class PreferenceConfig:
    """What is minimized; beside it stands β, which is traced."""

    loss: str = one_of(LOSSES, "sigmoid")
    """sigmoid (DPO), sigmoid_norm (DPO per token, Tülu 3), ipo or kto."""
    label_smoothing: float = 0.0
    """Share of preferences taken to be the wrong way round, in [0, 0.5]; of the sigmoid losses."""
    sync_ref_model: bool = False
    """Whether the reference follows the policy (arXiv:2404.09656): TR-DPO, TR-IPO, TR-KTO."""
    ref_model_mixup_alpha: float = 0.6
    """α of θ_ref ← (1 − α) θ_ref + α θ, in [0, 1]; 1 is a hard update."""
    ref_model_sync_steps: int = 512
    """τ, steps between two updates; ≥ 1, and 1 with a small α is the soft update."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    """Of completions in KTO; ≥ 0."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_choice("loss", self.loss, LOSSES)
        check_number("label_smoothing", self.label_smoothing, 0.0, 0.5)
        check_number("ref_model_mixup_alpha", self.ref_model_mixup_alpha, 0.0, 1.0)
        check_count("ref_model_sync_steps", self.ref_model_sync_steps)
        check_number("desirable_weight", self.desirable_weight, 0.0, float("inf"))
        check_number("undesirable_weight", self.undesirable_weight, 0.0, float("inf"))


@dataclass(frozen=True)
class TrainConfig:
    """What every training command shares and the trained parameters depend on."""

    learning_rate: float = 2e-5
    """Peak; ≥ 0. Each method has a default of its own, TRL's; this is that of supervised fine-tuning."""
    max_steps: int = 100
    """Steps; ≥ 1. A step of PPO is a rollout with all its updates, of other methods one update."""
    batch_size: int = 32
    """Sequences or pairs in an update, over all devices and accumulation steps; ≥ 1."""
    gradient_accumulation_steps: int = 1
    """Parts of a batch whose gradients are added up one after the other; divides batch_size."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0, in [0, 1]."""
    warmup_steps: float = 0.0
    """The same as a number of steps, in place of the share; below 1 a share too, and 0 leaves it to that."""
    lr_scheduler_type: str = one_of(SCHEDULES, "cosine")
    """constant, linear or cosine: how it falls after the warm-up (cosine and linear to 0)."""
    weight_decay: float = 0.0
    """Of AdamW; ≥ 0."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    """Decay of AdamW's first and second moment, in [0, 1)."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment; ≥ 0."""
    max_grad_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it; ≥ 0."""
    ema_decay: float = 0.0
    """d of the average of the parameters that is kept, in [0, 1], see `averaging`; 0 keeps the last ones."""
    gradient_checkpointing: bool = False
    """Whether a block's activations are computed again for its gradients: less memory, a third more time."""
    seed: int = 0
    """Of the data's order and of sampling; ≥ 0."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_number("learning_rate", self.learning_rate, 0.0, math.inf)
        check_count("max_steps", self.max_steps)
        check_count("batch_size", self.batch_size, most=10**5)
        check_count("gradient_accumulation_steps", self.gradient_accumulation_steps)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: expected a divisor of the batch size ({self.batch_size}), "
                f"got {self.gradient_accumulation_steps}"
            )
        check_number("warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        check_choice("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        check_number("warmup_steps", self.warmup_steps, 0.0, MOST)
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"warmup_steps: expected a whole number, or a share below 1, got {self.warmup_steps!r}"
            )
        check_number("weight_decay", self.weight_decay, 0.0, math.inf)
        for name in ("adam_beta1", "adam_beta2"):
            check_number(name, getattr(self, name), 0.0, 1.0)
            if getattr(self, name) == 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got 1")
        check_number("adam_epsilon", self.adam_epsilon, 0.0, math.inf)
        check_number("max_grad_norm", self.max_grad_norm, 0.0, math.inf)
        check_number("ema_decay", self.ema_decay, 0.0, 1.0)
        check_seed(self.seed)


@dataclass(frozen=True)
class RunConfig:
    """What a training run writes on its way; its parameters do not depend on it."""

    eval_steps: int = 0
    """Steps between two evaluations; 0: only after the last."""
    save_steps: int = 100
    """Steps between two checkpoints; ≥ 1."""
    save_total_limit: int = 2
    """Checkpoints kept; ≥ 1."""
    save_only_model: bool = False
    """Whether no checkpoint stays when the run has ended: more steps then cannot go on from the last one."""
    report_to: str = one_of(REPORTERS, "none")
    """One of `REPORTERS`: where metrics are told beside metrics.jsonl."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("eval_steps", self.eval_steps, least=0)
        check_count("save_steps", self.save_steps)
        check_count("save_total_limit", self.save_total_limit)
        check_choice("report_to", self.report_to, REPORTERS)


@dataclass(frozen=True)
class PPOConfig:
    """The constants of PPO."""

    num_ppo_epochs: int = 4
    """Times that a rollout is gone through; ≥ 1."""
    num_mini_batches: int = 1
    """Parts of the rollout, one update each; divides the batch size."""
    cliprange: float = 0.2
    """ε of the ratio; > 0."""
    cliprange_value: float = 0.2
    """ε of the values, in the reward's unit; > 0, infinite for none."""
    vf_coef: float = 0.1
    """Weight of the value loss; ≥ 0."""
    gamma: float = 1.0
    lam: float = 0.95
    """Discount and λ of generalized advantages, in [0, 1]."""
    kl_estimator: str = one_of(KL_ESTIMATORS, "sampled")
    """sampled: of a token, the log-ratio of the word that was drawn; exact: the divergence of the next word."""
    value_lam: float | None = None
    """λ of the returns that the values learn, in [0, 1]; None: `lam`. With 1 they learn from whole returns, whatever
    the advantages are made of (arXiv:2503.01491)."""
    value_head: str = one_of(VALUE_HEADS, "own")
    """own: a value model with a trunk of its own, which starts as the policy's; shared: a head on the policy;
    reference: a small network on the frozen reference's hidden states and the number of tokens so far."""
    value_learning_rate: float | None = None
    """Peak learning rate of the value model's own parameters, > 0; None: that of the policy."""
    value_warmup_steps: int = 0
    """First steps in which only the value model learns; ≥ 0."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("num_ppo_epochs", self.num_ppo_epochs, most=10**4)
        check_count("num_mini_batches", self.num_mini_batches, most=10**4)
        check_number("cliprange", self.cliprange, 1e-9, math.inf)
        if self.cliprange_value != math.inf:
            check_number("cliprange_value", self.cliprange_value, 1e-9, math.inf)
        check_number("vf_coef", self.vf_coef, 0.0, math.inf)
        check_number("gamma", self.gamma, 0.0, 1.0)
        check_number("lam", self.lam, 0.0, 1.0)
        check_choice("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        if self.value_lam is not None:
            check_number("value_lam", self.value_lam, 0.0, 1.0)
        check_choice("value_head", self.value_head, VALUE_HEADS)
        if self.value_learning_rate is not None:
            check_number("value_learning_rate", self.value_learning_rate, 1e-12, math.inf)
        check_count("value_warmup_steps", self.value_warmup_steps, least=0)


@dataclass(frozen=True)
class ValueTraining:
    """What a value head learns from rollouts."""

    method: str = one_of(VALUE_METHODS, "fudge")
    """fudge: the reward of the whole completion at every token; cd-q: the mean value of the next word, and the
    reward at the last."""
    num_epochs: int = 4
    """Updates from the completions of a step; ≥ 1."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_choice("method", self.method, VALUE_METHODS)
        check_count("num_epochs", self.num_epochs, most=10**4)


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are drawn and judged in a step."""

    decode: DecodeConfig
    """Temperature 1 without truncation is on-policy."""
    num_samples: int = 4
    """Completions of each prompt in a step; ≥ 1. The batch size is a multiple."""
    beta: float = 0.1
    """KL strength, in reward per nat; ≥ 0."""
    target_kl: float | None = None
    """KL divergence that β is adapted to, in nats per completion; None leaves β as it is."""
    horizon: int = 10_000
    """Completions in which an adaptive β changes by about a fifth; ≥ 1."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("num_samples", self.num_samples)
        check_number("beta", self.beta, 0.0, float("inf"))
        check_count("horizon", self.horizon)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, 1e-9, float("inf"))
