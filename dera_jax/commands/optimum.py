"""Shows what perfect training would give, before any training, and how far a model is from it.

  python -m eval.optimum --reference=DIR --prompts=FILE.jsonl --reward=length:40:60 --beta=0.1 --out=DIR
  python -m eval.optimum RUN --reward=length:40:60 --beta=0.1 --out=DIR    from a sweep with completions at λ = 0
  python -m eval.optimum RUN --reward=length:40:60 --beta=0.1 --out=DIR --of=RUN2 --of=RUN3

The optimum of a reward r under a KL penalty β/λ is π_ref(y) exp(λ r(y)/β)/Z (Eq. 2). Completions of the reference are
accepted with probability exp(λ (r − R)/β), R being the largest value that the reward can have: those are exact samples.
Where too few are accepted, or R is unknown, they are drawn in proportion to exp(λ r/β), and the report says how many
completions carry that weight. Both are rows like those of a sweep: eval.plot, eval.tune and eval.compare take them.

--of measures how far the policies of another run are from the optimum at their own β/λ: KL(π‖π*) in nats. To measure a
model, decode it first: eval.sweep --aligned=MODEL --lambda=1.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models, sweeping
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_count, check_number

TRIES = 64
SAMPLES = 4


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.optimum`."""
    parser = cli.Parser("optimum", __doc__)
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a sweep's folder, or its rows.jsonl[.gz|.xz]: its completions at λ = 0 are used; without it, the "
        "reference is decoded first",
    )
    parser.add_argument(
        "--of",
        action="append",
        default=[],
        type=Path,
        metavar="RUN",
        help="tell how far the policies of this run are from their optimum; may be repeated",
    )
    parser.add_argument(
        "--max-reward",
        type=float,
        metavar="R",
        help="largest value that the reward can have (default: 0 for length, 1 for slots, keywords and concepts; "
        "for others unknown, and then no sample is exact)",
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=TRIES,
        metavar="N",
        help="without RUN: completions of the reference for each prompt (default %(default)s)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="use runs that are not complete, with a warning"
    )
    sweeping.add_sweep_options(
        parser, num_samples=SAMPLES, samples="rows of the optimum for each prompt and strength"
    )
    models.add_model_options(parser)
    decoding.add_decode_options(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.optimum`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    command = cli.command_line("eval.optimum", argv)
    strengths = _checked(args)
    if args.run:
        sweeping.refuse_own(args, parser, WITH_RUN)
        from dera_jax.commands.parts.optimum import optimum_of_run

        optimum_of_run(args, strengths, command)
    else:
        from dera_jax.commands.parts.optimum import optimum_of_reference

        optimum_of_reference(args, strengths, command)


def _checked(args: Namespace) -> list[float]:
    """Returns the strengths.

    Raises:
      ValueError: one is below 0, or another number is out of its range.
    """
    from dera_jax.strengths import parse_strengths

    strengths = [strength for (strength,) in parse_strengths(args.lambda_, 1)]
    if min(strengths) < 0:
        raise ValueError(f"--lambda: expected strengths of at least 0, found {min(strengths):g}")
    check_count("--num-samples", args.num_samples)
    check_count("--tries", args.tries, most=10**5)
    if args.beta is not None:
        check_number("--beta", args.beta, -float("inf"), float("inf"))
        if args.beta <= 0:
            raise ValueError(f"--beta: expected a number above 0, got {args.beta:g}")
    if args.max_reward is not None:
        check_number("--max-reward", args.max_reward, -float("inf"), float("inf"))
    if args.out:
        cli.check_folder(args.out)
    return strengths


WITH_RUN = (
    "run", "of", "max_reward", "allow_missing", "num_samples", "lambda_", "reward", "beta", "out", "seed"
)  # fmt: skip
"""Options that have a meaning with RUN."""
