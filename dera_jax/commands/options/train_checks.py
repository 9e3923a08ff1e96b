"""Mistakes in the options of a training command, told before anything is loaded, in the words of the options."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from dera_jax.commands.options import cli, devices, training
from dera_jax.common.checks import check_count, check_number
from dera_jax.common.shown import shown
from dera_jax.training.publishing import check_target
from dera_jax.training.services import check_installed

T = TypeVar("T")


def check(parser: cli.Parser, args: argparse.Namespace, idle: Mapping[str, str] | None = None) -> None:
    """Raises ValueError for options that cannot be, or have no effect; then joins the other processes.

    Args:
      idle: further options that have no effect as the others stand, and with which they would.
    """
    idle = dict(idle or {})
    if args.push_to_hub is None:
        idle["--hub-private"] = "--push-to-hub"
    if args.lora_r is None:
        idle |= dict.fromkeys(("--lora-alpha", "--lora-target-modules"), "--lora-r")
    for name, needed in idle.items():
        if name in parser.given:
            raise ValueError(f"{name} has an effect with {needed} only")
    as_options(args, lambda: training.run_config(args))
    check_installed(args.report_to)
    if args.push_to_hub is not None:
        check_target(args.push_to_hub)
    for _, seed, _ in training.grid(args):
        as_options(args, lambda seed=seed: training.train_config(args, seed))
    if getattr(args, "from_scratch", False) and args.lora_r is not None:
        raise ValueError("--from-scratch --lora-r: adapters on random weights are of no use without those")
    if args.lora_r is not None:
        check_count("--lora-r", args.lora_r, most=10**5)
    if getattr(args, "max_length", None) is not None:
        check_count("--max-length", args.max_length, least=2, most=10**6)
    if getattr(args, "eval_share", None) is not None:
        if args.eval_data:
            raise ValueError("expected --eval-data or --eval-share, found both")
        check_number("--eval-share", args.eval_share, 0.0, 0.9)
    cli.check_folder(args.out)
    devices.check_free(args, [folder for folder, _, _ in training.grid(args)])
    if args.chat_template is not None:
        from dera_jax.policies.tokenizers import read_template

        args.chat_template = read_template(Path(args.chat_template))
    devices.start(args, saves=True)


def max_length(args: argparse.Namespace, *policies, whole: bool = False) -> int:
    """Returns the tokens of a text, by default as many as the context of every policy has.

    Args:
      policies: that read the texts.
      whole: whether they read the last token too, from which nothing is drawn.

    Raises:
      ValueError: more than a context holds.
    """
    shortest = min(policies, key=lambda policy: policy.config.max_positions)
    context = shortest.config.max_positions
    if args.max_length is None:
        return context
    if args.max_length > context + (not whole):
        raise ValueError(
            f"--max-length={args.max_length} is beyond the context of {shown(shortest.name, 200)} ({context} tokens)"
        )
    return args.max_length


def check_samples(args: argparse.Namespace) -> None:
    """Raises ValueError where a batch cannot be made of --num-samples completions of prompts."""
    rows, samples = args.batch_size, args.num_samples
    check_count("--num-samples", samples)
    if rows % samples:
        raise ValueError(f"--batch-size={rows}: expected a multiple of --num-samples={samples}")


def check_rollouts(args: argparse.Namespace) -> None:
    """Raises ValueError where a batch cannot be made of completions by an algorithm, or not be split."""
    check_samples(args)
    rows, samples = args.batch_size, args.num_samples
    if args.algorithm == "rloo" and samples < 2:
        raise ValueError(f"--num-samples={samples}: --algorithm=rloo expects 2 or more; pg takes 1")
    if args.algorithm == "pg" and rows < 2:
        raise ValueError("--batch-size=1: --algorithm=pg compares completions of a step with each other")
    if args.target_kl is not None and rows >= 5 * args.kl_horizon:
        raise ValueError(
            f"--kl-horizon={args.kl_horizon}: expected more than a fifth of --batch-size={rows}, or β would "
            "become 0 in a step"
        )
    parts = args.num_mini_batches * args.gradient_accumulation_steps
    if args.algorithm == "ppo" and rows % max(parts, 1):
        raise ValueError(
            f"--batch-size={rows}: expected a multiple of --num-mini-batches={args.num_mini_batches} × "
            f"--gradient-accumulation-steps={args.gradient_accumulation_steps}"
        )


def check_prompts(args: argparse.Namespace, count: int) -> None:
    """Raises ValueError where a step takes more prompts than there are."""
    needed = args.batch_size // args.num_samples
    if needed > count:
        raise ValueError(
            f"--batch-size={args.batch_size} with --num-samples={args.num_samples} takes {needed} prompts a "
            f"step, found {count} in {args.data}"
        )


def as_options(args: argparse.Namespace, make: Callable[[], T]) -> T:
    """Returns what `make` returns; an error that begins with a setting's name begins with the option's."""
    try:
        return make()
    except ValueError as error:
        name = str(error).partition(":")[0]
        raise ValueError(
            f"{cli.option(name)}{str(error)[len(name) :]}" if hasattr(args, name) else error
        ) from error
