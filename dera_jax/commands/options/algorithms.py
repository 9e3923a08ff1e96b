"""Options of the algorithms that train on a policy's own completions."""

from dera_jax.commands.options import cli
from dera_jax.training.config import PPOConfig

CONSTANTS = {
    "num_ppo_epochs": "times that a rollout is gone through",
    "num_mini_batches": "parts of a rollout, one update each",
    "cliprange": "of the ratio",
    "cliprange_value": "of the values, in the reward's unit; inf for none",
    "vf_coef": "weight of the value loss",
    "gamma": "discount",
    "lam": "λ of generalized advantages",
}
"""Settings of `PPOConfig`, each in the words of its option."""


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
        help="adapt β so that a completion's KL divergence from the reference is this (default: β stays)",
    )
    group.add_argument(
        "--kl-horizon",
        type=int,
        default=10_000,
        metavar="N",
        help="completions in which β adapts by about a fifth (default %(default)s)",
    )
    ppo = PPOConfig()
    group = parser.add_argument_group("PPO")
    for name, text in CONSTANTS.items():
        value = getattr(ppo, name)
        group.add_argument(
            cli.option(name),
            type=type(value),
            default=value,
            metavar="X",
            help=f"{text} (default %(default)g)",
        )
    group.add_argument(
        "--value-head",
        default=ppo.value_head,
        choices=("own", "shared"),
        help="a trunk of its own, or the policy's (default %(default)s)",
    )
