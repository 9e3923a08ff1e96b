"""The numbers of the small experiments: strengths, rewards, steps, batches, rates.

Those that the paper gives are kept (β = 0.1, the strengths); others are what reaches a plateau in minutes.
"""

HERE = "scripts.reproduce"
GRID = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""The paper's strengths of Fig. 2, 5, 8 and 9, and ½ for the seeds."""
WIDE = (0.0, 0.5, 2 / 3, 1.0, 2.0, 5.0, 10.0)
"""Those of Fig. 3, 6 and 7."""
WIDER = (0.0, 0.25, 0.5, 2 / 3, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Those and three more, where the truth is known."""
FAR = (0.0, 0.011, 0.1, 0.5, 2 / 3, 1.0, 2.0, 5.0, 10.0)
"""Those of Fig. 4."""
SEEDED = (0.5, 1.0, 2.0)
"""Strengths trained with three seeds."""
LINE = r"\n"
"""Ends a paragraph, drawn or learned from."""
PARAGRAPH = r"length:40:60:\n"
SENTENCE = "length:16:24"
BANDS = {
    "stories-length-rloo": (40, 60), "stories-length-ppo": (40, 60), "stories-length-lora": (40, 60),
    "stories-converged-1": (40, 60), "stories-converged-0.5": (40, 60), "e2e-length-ppo": (16, 24),
}  # fmt: skip
"""Tokens that are rewarded."""
SENTIMENT_WEIGHT = 0.3
"""Of a mean rating, −4 to 4, beside a length reward of −1 or 0."""
INVENTED = f"python:{HERE}.rewards:invented"

STORIES = {
    "stop": LINE, "max_steps": 120, "batch_size": 64, "num_samples": 4, "learning_rate": 2e-4,
}  # fmt: skip
PPO = {
    "algorithm": "ppo", "max_steps": 80, "learning_rate": 4e-5, "lam": 1, "num_ppo_epochs": 2, "num_mini_batches": 2,
}  # fmt: skip
"""With λ = 1 advantages are whole returns: a value model that knows nothing yet does not punish endings."""

CONVERGED = {
    "algorithm": "ppo", "max_steps": 80, "num_ppo_epochs": 2, "num_mini_batches": 4, "cliprange_value": "inf",
    "lam": 0.8, "value_lam": 1, "value_head": "reference", "value_learning_rate": 2e-3, "value_warmup_steps": 12,
    "learning_rate": 4e-5, "adam_beta2": 0.95, "warmup_ratio": 0.05, "batch_size": 256, "num_samples": 4,
    "max_new_tokens": 64,
}  # fmt: skip
"""PPO against the noise of its gradient, which is what keeps it from the optimum: a value model of its own, as good as
rollouts without a step of the policy make it, and an advantage of few steps."""

REWARD = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "weight_decay": 1.0,
    "num_train_epochs": 2,
    "warmup_ratio": 0.1,
}
DPO = {"batch_size": 32, "learning_rate": 1e-4, "num_train_epochs": 1, "warmup_ratio": 0.1}
SFT = {"batch_size": 32, "learning_rate": 2e-3, "num_train_epochs": 1, "warmup_ratio": 0.1}
HH_STEPS = {"max_steps": 100, "batch_size": 64, "num_samples": 4, "learning_rate": 2e-4}
PREFERENCES = {"strengths": WIDE, "retrained": WIDE[1:], "combined": (0.5, 2.0, 5.0)}
GOLD = PREFERENCES | {"strengths": WIDER, "retrained": WIDER[1:], "repeated": SEEDED, "num_seeds": 3}
GOLD_WEAK = {
    "beta": 0.005, "strengths": (0.0, 0.05, 0.1, 0.2, 0.5, 1.0), "retrained": (0.05, 0.1, 0.2, 0.5),
    "combined": (0.2, 0.5),
}  # fmt: skip
