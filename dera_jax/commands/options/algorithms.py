"""Options of the algorithms that train on a policy's own completions."""

from dera_jax.commands.options import cli
from dera_jax.commands.options.settings import Help, add_settings
from dera_jax.training.config import PPOConfig, RolloutConfig

PPO: Help = {
    "num_ppo_epochs": ("X", "passes over each rollout (default %(default)g)"),
    "num_mini_batches": ("X", "mini-batches per pass, with one update each (default %(default)g)"),
    "cliprange": ("X", "clip range of the probability ratio (default %(default)g)"),
    "cliprange_value": (
        "X",
        "clip range of the values, in the unit of the reward; inf for none (default %(default)g)",
    ),
    "vf_coef": ("X", "weight of the value loss (default %(default)g)"),
    "gamma": ("X", "discount factor (default %(default)g)"),
    "lam": ("X", "λ of generalized advantage estimation (default %(default)g)"),
    "kl_estimator": (
        None,
        "what a token costs: sampled, the log-ratio of the word that was drawn; exact, the divergence of the next "
        "word, whose gradient is taken itself: less noise, one more pass of the reference (default %(default)s)",
    ),
    "value_lam": ("X", "λ of the returns that the values learn; 1: whole returns (default: --lam)"),
    "value_head": (
        None,
        "own: a network of its own; shared: a head on the policy; reference: a small network on what the reference "
        "reads (default %(default)s)",
    ),
    "value_learning_rate": ("RATE", "learning rate of the value model (default: --learning-rate)"),
    "value_warmup_steps": ("N", "first steps in which only the value model learns (default %(default)s)"),
}
"""Settings of `PPOConfig`."""


def add_algorithm_options(parser: cli.Parser) -> None:
    """Adds the choice of an algorithm, the KL it may aim at, and PPO's own settings."""
    group = parser.add_argument_group("algorithm")
    group.add_argument(
        "--algorithm", default="rloo", choices=("pg", "rloo", "ppo"), help="(default %(default)s)"
    )
    group.add_argument(
        "--target-kl",
        type=float,
        metavar="NATS",
        help="adapt β so that the KL of a completion from the reference is this (default: β is fixed)",
    )
    group.add_argument(
        "--kl-horizon",
        type=int,
        default=RolloutConfig.horizon,
        metavar="N",
        help="completions in which β adapts by about a fifth (default %(default)s)",
    )
    group.add_argument(
        "--certificate-samples",
        type=int,
        default=16,
        metavar="N",
        help="completions of each of up to 64 prompts, of the trained model and of its reference, that tell how far "
        "it is from the optimum of its objective (default %(default)s; 0: it is not told); fewer prompts in a short "
        "training: about a tenth of what it draws, and one batch of each at least",
    )
    add_settings(parser.add_argument_group("PPO"), PPOConfig, PPO)
