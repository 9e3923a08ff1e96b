"""Settings, validated where they are made. Standard library only."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields

KV_CACHES = ("auto", "bfloat16", "int8")
"""How keys and values of earlier tokens are kept; auto: in the type of the activations."""


REPORTERS = ("none", "tensorboard", "wandb", "trackio")
"""Where a training may tell its metrics."""


@dataclass(frozen=True)
class DecodeConfig:
    """How completions are drawn. Applied after mixing."""

    max_new_tokens: int = 128
    """Longest completion, in tokens; ≥ 1."""
    temperature: float = 1.0
    """Divides the mixed logits; ≥ 0, and 0 (or less than 1e-30) takes the most probable token."""
    top_k: int | None = None
    """Number of most probable tokens kept; ≥ 1. None keeps all, as do 0 and −1, which other libraries say."""
    top_p: float | None = None
    """Smallest set of tokens with at least this probability, in (0, 1]. None keeps all."""
    stop: tuple[str, ...] | str = ()
    """Texts that end a completion, or one; what is whole first ends it, and is left out of it."""
    seed: int = 0
    """Of all randomness; ≥ 0."""
    kv_cache: str = "auto"
    """auto, bfloat16 or int8 (a float scale per token and head): how keys and values are kept."""

    def __post_init__(self):
        take_plain_numbers(self)
        if isinstance(self.stop, str):  # its letters would be taken for stop texts
            object.__setattr__(self, "stop", (self.stop,))
        check_choice("kv_cache", self.kv_cache, KV_CACHES)
        check_count("max_new_tokens", self.max_new_tokens, most=10**6)
        check_number("temperature", self.temperature, 0.0, math.inf)
        if isinstance(self.top_k, int) and self.top_k in (0, -1) and not isinstance(self.top_k, bool):
            object.__setattr__(self, "top_k", None)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0.0, 1.0)
            if self.top_p == 0:
                raise ValueError("top_p: expected a number in (0, 1], got 0")
        check_seed(self.seed)
        if not all(self.stop):
            raise ValueError("stop: expected texts with at least one character, got an empty one")


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
    lr_scheduler_type: str = "cosine"
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
        check_choice("lr_scheduler_type", self.lr_scheduler_type, ("constant", "linear", "cosine"))
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
    report_to: str = "none"
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
    value_head: str = "own"
    """own: a value model with a trunk of its own, which starts as the policy's; shared: a head on the policy."""

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
        check_choice("value_head", self.value_head, ("own", "shared"))


def take_plain_numbers(settings: object) -> None:
    """Replaces the numbers of NumPy and JAX in a frozen dataclass by Python's own, which files can hold."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            object.__setattr__(settings, field.name, value.item())


MOST = 10**9
"""Of anything that is counted; more is a slip of the finger, and would end the machine before the command."""


def check_count(name: str, value: int, least: int = 1, most: int = MOST) -> None:
    """Raises ValueError unless `value` is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number, at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name}: expected a whole number, at most {most}, got {value!s:.40}")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless `value` is finite and in [low, high]."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def check_seed(seed: int) -> None:
    """Raises ValueError unless `seed` is an integer from 0 to 2⁶³ − 1."""
    check_count("seed", seed, least=0, most=2**63 - 1)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def rows_of(rows: int | str | None, cells: int) -> int:
    """Returns the rows of a batch that makes `cells` completions: `rows`, or (None, "auto") at most 32."""
    if rows is None or rows == "auto":
        return min(32, max(1, cells))
    if isinstance(rows, str):
        raise ValueError(f"rows: expected a whole number or auto, got {rows!r:.40}")
    check_count("rows", rows)
    return rows
