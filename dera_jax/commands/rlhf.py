"""Alignment of a model with a reward by policy gradient (Eq. 13), held near its reference by β · KL.

Each step draws --num-samples completions of each of its prompts from the policy, judges them, and
follows REINFORCE with a leave-one-out baseline. The model's β is kept in its manifest, so that
sweeps over it can show β/λ.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands import cli, train_options
from dera_jax.configs import check_number


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.rlhf`."""
    parser = cli.Parser(__doc__, prog="python -m train.rlhf")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="where to start: a folder or org/name[@revision]"
    )
    parser.add_argument(
        "--reference", metavar="MODEL", help="what the policy is held near (default: --model)"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="PROMPTS",
        help="prompts: FILE.jsonl|.parquet|.txt, hf:org/set, tfds:name",
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="the first N of the data (default: all)")
    parser.add_argument(
        "--reward",
        required=True,
        metavar="REWARD[,REWARD…]",
        help="length:MIN:MAX[:STOP], lexicon:FILE, keywords:a|b, python:module:function; several are added up",
    )
    parser.add_argument(
        "--beta", type=float, default=0.1, help="KL strength β, in reward per nat (default %(default)s)"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the model, its manifest and metrics.jsonl",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=4,
        metavar="N",
        help="completions of each prompt in a step (default %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="longest completion, in tokens (default %(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end a completion at TEXT, escapes such as \n allowed; may be repeated",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="of sampling (default %(default)s, which is on-policy)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16"),
        help="of parameters and activations (default %(default)s)",
    )
    train_options.add_train_options(parser, learning_rate=1e-4, max_steps=100, batch_size=128)
    args = parser.parse_args(argv)

    from dera_jax.configs import DecodeConfig
    from dera_jax.encoding import encode_prompts
    from dera_jax.policies import load_policy
    from dera_jax.prompts import check_one_turn, load_prompts
    from dera_jax.rewards import parse_rewards
    from dera_jax.rlhf import train_policy_gradient

    config = train_options.train_config(args)
    decode = DecodeConfig(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        stop=tuple(map(cli.unescape, args.stop)),
        seed=args.seed,
    )
    check_number("beta", args.beta, 0.0, float("inf"))
    train_options.check_new_folder(args.out)
    rewards = parse_rewards(args.reward)
    prompts = load_prompts(args.data, args.num_prompts)
    cli.announce_devices()
    policy = load_policy(args.model, args.dtype)
    reference = load_policy(args.reference, args.dtype) if args.reference else policy
    check_one_turn(prompts)
    encoded = encode_prompts((policy,), prompts, decode.max_new_tokens)
    print(f"{len(encoded)} prompts, β = {args.beta:g}, reward {args.reward}", file=sys.stderr)
    manifest = {
        "method": "policy_gradient",
        "beta": args.beta,
        "reward": args.reward,
        "start": {"model": policy.name, "fingerprint": policy.fingerprint},
        "reference": {"model": reference.name, "fingerprint": reference.fingerprint},
        "data": args.data,
        "prompts": len(encoded),
        "num_samples": args.num_samples,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "stop": list(decode.stop),
    }
    steps = train_policy_gradient(
        policy, reference, encoded, rewards, args.beta, args.num_samples, decode, config, args.out
    )
    train_options.finish(policy, steps, config, args.out, manifest, cli.command_line("train.rlhf", argv))
