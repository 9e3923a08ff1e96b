"""What commands share that train on completions of prompts: which prompts, and what judges the completions."""

import argparse
from collections.abc import Callable
from functools import cache

from dera_jax.commands.options import cli, train_checks


def add_prompt_options(parser: argparse.ArgumentParser, evaluated: str) -> None:
    """Adds the prompts and the rewards.

    Args:
      evaluated: what is drawn of the prompts to evaluate on.
    """
    parser.add_argument(
        "--data",
        required=True,
        metavar="PROMPTS",
        help="prompts: FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split] or tfds:name[:split]",
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="the first N of the data (default: all)")
    parser.add_argument("--eval-data", metavar="PROMPTS", help=f"prompts to evaluate on, {evaluated}")
    parser.add_argument(
        "--reward",
        required=True,
        metavar="REWARD[,REWARD…]",
        help=f"{cli.REWARDS}; several are added up",
    )
    parser.add_argument(
        "--reward-weights", metavar="W[,W…]", help="of each reward in the sum (default: 1 each)"
    )


def read_rewards(args: argparse.Namespace) -> tuple[tuple, dict]:
    """Returns the rewards with their weights, and what a manifest says of them."""
    from dera_jax.rewards.registry import parse_rewards, weigh_rewards

    rewards = weigh_rewards(parse_rewards(args.reward), args.reward_weights)
    hashes = {reward.name: reward.fingerprint for reward in rewards if reward.fingerprint}
    return rewards, {
        "reward": args.reward,
        **({"reward_weights": args.reward_weights} if args.reward_weights else {}),
        **({"reward_hashes": hashes} if hashes else {}),
    }


def read_prompts(args: argparse.Namespace) -> Callable[[Callable], list[list]]:
    """Returns what encodes the prompts to train and to evaluate on for a reader; files are read now.

    What it returns takes a function that makes the reader, and tells once which prompts are not read.

    Raises:
      ValueError: prompts that cannot be read, or of several turns, or fewer than a step takes.
    """
    from dera_jax.common.usable import Dropped
    from dera_jax.data.encoding import encode_usable
    from dera_jax.data.prompts import check_one_turn, read_prompts

    prompts, dropped = read_prompts(args.data, args.num_prompts, args.chat_template_kwargs)
    held_out, also = [], Dropped()
    if args.eval_data:
        held_out, also = read_prompts(args.eval_data, settings=args.chat_template_kwargs)
    check_one_turn([*prompts, *held_out])
    train_checks.check_prompts(args, len(prompts))

    @cache
    def encoded(make_reader: Callable) -> list[list]:
        reader, found = make_reader(), []
        for name, some, unread in (("data", prompts, dropped), ("eval_data", held_out, also)):
            usable = []
            if some:
                _, usable, unfit = encode_usable((reader,), some, args.max_new_tokens)
                cli.tell((unread | unfit).told(getattr(args, name), len(usable)))
            found.append(usable)
        train_checks.check_prompts(args, len(found[0]))
        return found

    return encoded
