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

from dera_jax.commands.options import algorithms, cli, decoding, rollouts, train_checks, train_grid, training
from dera_jax.commands.options.settings import read_settings
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_count
from dera_jax.training.config import PPOConfig, RolloutConfig


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.rlhf`."""
    parser = cli.Parser("rlhf", __doc__)
    training.add_model_options(parser)
    rollouts.add_prompt_options(parser, "one completion of each")
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
    elif args.value_warmup_steps >= args.max_steps:
        raise ValueError(
            f"--value-warmup-steps: expected fewer than --max-steps={args.max_steps}, found {args.value_warmup_steps}: "
            "the policy would not be trained"
        )
    if args.target_kl is None:
        idle["--kl-horizon"] = "--target-kl"
    check_count("--certificate-samples", args.certificate_samples, least=0)
    train_checks.check_rollouts(args)
    train_checks.check(parser, args, idle)


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.rlhf`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check(parser, args)

    from dera_jax.training.policy_gradient import policy_gradient_method
    from dera_jax.training.ppo import ppo_method
    from dera_jax.training.runs import Best, fingerprint

    ppo = train_checks.as_options(args, lambda: read_settings(args, PPOConfig))

    def rollout_config(seed, beta):
        decode = decoding.decode_config(args, seed=seed)
        return read_settings(args, RolloutConfig, decode=decode, beta=beta, horizon=args.kl_horizon)

    for _, seed, beta in training.grid(args):
        train_checks.as_options(args, lambda seed=seed, beta=beta: rollout_config(seed, beta))
    rewards, told = rollouts.read_rewards(args)
    read = rollouts.read_prompts(args)
    cli.announce_devices()
    session = training.open_session(args)

    def reader():
        # The reference reads what the policy does.
        shortest = min((session.start, session.reference), key=lambda one: one.config.max_positions)
        return replace(session.start, config=shortest.config)

    def prepare(policy, seed, beta):
        reference, (encoded, asked) = session.reference, read(reader)
        rollout, config = rollout_config(seed, beta), training.train_config(args, seed)

        def method():
            given = policy, reference, encoded, rewards, rollout
            told_by = {"held_out": asked, "certificate_samples": args.certificate_samples}
            if args.algorithm == "ppo":
                return ppo_method(*given, ppo, config, **told_by)
            return policy_gradient_method(*given, config, algorithm=args.algorithm, **told_by)

        settings = session.settings(args.algorithm, policy) | {
            "beta": beta,
            **told,
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
