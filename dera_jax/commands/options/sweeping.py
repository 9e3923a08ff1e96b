"""Options of commands that decode prompts at strengths into a folder."""

import argparse
from collections.abc import Collection
from pathlib import Path

from dera_jax.commands.options import cli, decoding, devices
from dera_jax.common.checks import check_count, check_number


def add_sweep_options(
    parser: argparse.ArgumentParser,
    strengths: str = "0:2:0.2",
    num_samples: int = 1,
    num_prompts: int = 64,
    samples: str = "completions of each prompt at each strength",
) -> None:
    """Adds what is decoded: strengths, prompts, rewards, and the folder; with these defaults.

    Args:
      samples: what `num_samples` counts.
    """
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default=strengths,
        metavar="STRENGTHS",
        help="a list 0,0.5,1 (1/6 is fine) or a range start:stop:step, 0:2:0.2; for two aligned models 0.5+0.5 or "
        "the grid 0:1:0.5x0:1:0.5; prompt: the strength in each prompt's field `lambda` (default %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split], tfds:name[:split], toy or chat "
        "(default: toy with the toy pair, else chat)",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD[,REWARD…]",
        help=f"{cli.REWARDS} (default: none; for the toy pair length:16:24)",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        default=num_prompts,
        metavar="N",
        help="use the first N prompts (default %(default)s)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=num_samples,
        metavar="N",
        help=f"{samples} (default %(default)s)",
    )
    parser.add_argument(
        "--beta",
        type=float,
        metavar="B",
        help="KL strength that the aligned model was trained with, to show β/λ (default: as in its manifest)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default runs/<reference>-<aligned>-<hash>)"
    )


def refuse_own(args: argparse.Namespace, parser: argparse.ArgumentParser, with_run: Collection[str]) -> None:
    """Raises ValueError where an option of a command's own sweep is given beside a run.

    Args:
      with_run: names of those that have a meaning there.
    """
    for name, value in vars(args).items():
        if name not in with_run and value != parser.get_default(name):
            raise ValueError(
                f"{cli.option(name.strip('_'))} has no meaning with RUN, whose completions are there"
            )


def of_plain_draw(args: argparse.Namespace, **changes) -> argparse.Namespace:
    """Returns the arguments of a sweep that a command makes for itself: of the mixture as it is."""
    plain = {"draw": "mixture", "limit_means": None, "max_tries": None, "trace": False}
    return argparse.Namespace(**{**vars(args), **plain, **changes})


def check(args: argparse.Namespace) -> None:
    """Raises ValueError where a number is out of its range, or the folder cannot be one."""
    check_count("--num-prompts", args.num_prompts)
    check_count("--num-samples", args.num_samples)
    if args.beta is not None:
        check_number("--beta", args.beta, 0.0, float("inf"))
        if args.beta == 0:
            raise ValueError("--beta: expected a number above 0, got 0: no model is trained without")
    decoding.parse_rows(args.rows, 1)
    if args.out:
        cli.check_folder(args.out)
        devices.check_free(args, [args.out])
