"""Alignment of a model with a reward by PPO or policy gradient, held near its reference by β · KL.

Each step samples --num-samples completions of each of its prompts from the policy and scores
them. `rloo` and `pg` are REINFORCE (Eq. 13); the baseline is the mean of the other samples of
the prompt (`rloo`), or of all other samples (`pg`). `ppo` makes several passes over the
completions. The model's β is recorded in its manifest, so that sweeps over it can show β/λ.
Several values of --beta and --seed train a grid, each run in its own folder.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache

from dera_jax.commands.options import algorithms, cli, decoding, train_checks, train_grid, training
from dera_jax.commands.options.settings import read_settings
from dera_jax.commands.process import endings
from dera_jax.training.config import PPOConfig, RolloutConfig


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.rlhf`."""
    parser = cli.Parser("rlhf", __doc__)
    training.add_model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="PROMPTS",
        help="prompts: FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split] or tfds:name[:split]",
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="the first N of the data (default: all)")
    parser.add_argument(
        "--eval-data", metavar="PROMPTS", help="prompts to evaluate on, one completion of each"
    )
    parser.add_argument(
        "--reward",
        required=True,
        metavar="REWARD[,REWARD…]",
        help=f"{cli.REWARDS}; several are added up",
    )
    parser.add_argument(
        "--reward-weights", metavar="W[,W…]", help="of each reward in the sum (default: 1 each)"
    )
    training.add_reference_options(parser)
    algorithms.add_algorithm_options(parser)
    decoding.add_rollout_options(parser)
    training.add_train_options(
        parser, epochs=False, learning_rate=1e-6, max_steps=100, batch_size=128,
        save_steps=20,
    )  # fmt: skip
    return parser


def _check(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot be, or that do nothing."""
    idle = {}
    if args.algorithm != "ppo":
        idle |= dict.fromkeys(map(cli.option, algorithms.PPO), "--algorithm=ppo")
    if args.target_kl is None:
        idle["--kl-horizon"] = "--target-kl"
    train_checks.check_rollouts(args)
    train_checks.check(parser, args, idle)


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.rlhf`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check(parser, args)

    from dera_jax.common.usable import Dropped
    from dera_jax.data.encoding import encode_usable
    from dera_jax.data.prompts import check_one_turn, read_prompts
    from dera_jax.rewards.registry import parse_rewards, weigh_rewards
    from dera_jax.training.policy_gradient import policy_gradient_method
    from dera_jax.training.ppo import ppo_method
    from dera_jax.training.runs import Best, fingerprint

    ppo = train_checks.as_options(args, lambda: read_settings(args, PPOConfig))

    def rollout_config(seed, beta):
        decode = decoding.decode_config(args, seed=seed)
        return read_settings(args, RolloutConfig, decode=decode, beta=beta, horizon=args.kl_horizon)

    for _, seed, beta in training.grid(args):
        train_checks.as_options(args, lambda seed=seed, beta=beta: rollout_config(seed, beta))
    rewards = weigh_rewards(parse_rewards(args.reward), args.reward_weights)
    hashes = {reward.name: reward.fingerprint for reward in rewards if reward.fingerprint}
    prompts, dropped = read_prompts(args.data, args.num_prompts, args.chat_template_kwargs)
    held_out, also = [], Dropped()
    if args.eval_data:
        held_out, also = read_prompts(args.eval_data, settings=args.chat_template_kwargs)
    check_one_turn([*prompts, *held_out])
    train_checks.check_prompts(args, len(prompts))
    cli.announce_devices()
    session = training.open_session(args)

    @cache
    def usable():
        """Returns the prompts to train and to evaluate on; tells once which of them are not read."""
        # The reference reads what the policy does.
        shortest = min((session.start, session.reference), key=lambda one: one.config.max_positions)
        reader = replace(session.start, config=shortest.config)
        found = []
        for name, some, unread in (("data", prompts, dropped), ("eval_data", held_out, also)):
            encoded = []
            if some:
                _, encoded, unfit = encode_usable((reader,), some, args.max_new_tokens)
                cli.tell((unread | unfit).told(getattr(args, name), len(encoded)))
            found.append(encoded)
        return found

    def prepare(policy, seed, beta):
        reference, (encoded, asked) = session.reference, usable()
        rollout, config = rollout_config(seed, beta), training.train_config(args, seed)
        train_checks.check_prompts(args, len(encoded))

        def method():
            given = policy, reference, encoded, rewards, rollout
            if args.algorithm == "ppo":
                return ppo_method(*given, ppo, config, held_out=asked)
            return policy_gradient_method(*given, config, algorithm=args.algorithm, held_out=asked)

        settings = session.settings(args.algorithm, policy) | {
            "beta": beta,
            "reward": args.reward,
            **({"reward_weights": args.reward_weights} if args.reward_weights else {}),
            **({"reward_hashes": hashes} if hashes else {}),
            "reference": {"model": reference.name, "fingerprint": reference.fingerprint},
            "data": args.data,
            "prompts": len(encoded),
            "prompts_hash": fingerprint(encoded),
            "num_samples": args.num_samples,
            "max_new_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "stop": list(rollout.decode.stop),
            "target_kl": args.target_kl,
            "kl_horizon": args.kl_horizon,
        }
        if args.algorithm == "ppo":
            settings["ppo"] = asdict(ppo) | {"cliprange_value": str(ppo.cliprange_value)}
        save = session.save(policy, "policy." if args.algorithm == "ppo" else "")
        return method, save, config, settings, Best("eval_reward", largest=True)

    train_grid.run_grid(args, session, cli.command_line("train.rlhf", argv), prepare)
