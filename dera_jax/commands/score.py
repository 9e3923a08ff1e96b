"""Scores given text: the completions of a run, preference pairs, or texts under two models.

  python -m eval.score RUN --reward=lexicon:FILE         adds a reward to a run, without decoding
  python -m eval.score RUN --judge=URL,model --question=mt-bench    a judge's grades, as a reward
  python -m eval.score RUN --best-of=REWARD              what the best of n samples would give
  python -m eval.score --pairs=FILE --lambda=0:2:0.5     pairwise accuracy per strength (Eq. 14)
  python -m eval.score --models=A,B --prompts=FILE.txt   KL of A against B per token, on given text
  python -m eval.score --models=A,B --quantize=nf4 --prompts=FILE.txt   quantized against full

Pairs are what train.dpo and train.reward read: `prompt`, `chosen` and `rejected`, texts or lists of
messages; or whole transcripts in the last two. Accuracy is the share of pairs whose chosen
completion has the larger log π(y|x)/|y|; the implicit reward compares log π(y|x)/π_ref(y|x).
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models
from dera_jax.commands.options.judges import NAMES, add_endpoint_options
from dera_jax.commands.parts.score_given import score_models, score_pairs
from dera_jax.commands.parts.score_run import score_run
from dera_jax.commands.process import endings

TEMPLATES = ("chat_template", "reference_chat_template", "chat_template_kwargs")
OPTIONS = {
    "run": {"reward", "best_of", "prompts", "chat_template_kwargs", "judge", "question", *NAMES},
    "pairs": {
        "lambda_",
        "num_prompts",
        "rows",
        "out",
        "reference",
        "aligned",
        "steer",
        "stop",
        "aligned_instruction",
        "reference_instruction",
        "dtype",
        "quantize",
        *TEMPLATES,
    },
    "models": {"prompts", "num_prompts", "rows", "out", "dtype", "quantize", "lambda_", *TEMPLATES},
}
"""What can be done, each with the options that have a meaning there."""


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.score`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    cli.check_file("--out", args.out, ".json")
    modes = [mode for mode in OPTIONS if getattr(args, mode)]
    if len(modes) != 1:
        raise ValueError(
            "expected one of RUN with --reward or --best-of, --pairs=FILE, or --models=A,B with --prompts"
        )
    for name, value in vars(args).items():
        if name not in {*modes, *OPTIONS[modes[0]]} and value != parser.get_default(name):
            raise ValueError(
                f"--{name.strip('_').replace('_', '-')} has no meaning with {_written(modes[0])}"
            )
    args.command = cli.command_line("eval.score", argv)
    if args.run:
        score_run(args, parser)
    elif args.pairs:
        score_pairs(args)
    else:
        score_models(args)


def _written(mode: str) -> str:
    return "RUN" if mode == "run" else f"--{mode}"


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.score`."""
    parser = cli.Parser("score", __doc__)
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a sweep's folder, whose rows get --reward or --judge",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD[,REWARD…]",
        help=f"with RUN: {cli.REWARDS}",
    )
    parser.add_argument(
        "--judge",
        metavar="URL,MODEL",
        help="with RUN: a model behind an OpenAI-compatible URL, http://host/v1",
    )
    parser.add_argument(
        "--question", choices=("hallucination", "mt-bench"),
        help="what it is asked, and the reward's name: hallucination (1 if the completion says what the "
        "prompt does not, else 0) or mt-bench (1 to 10)",
    )  # fmt: skip
    parser.add_argument(
        "--best-of",
        metavar="REWARD",
        help="with RUN: rank the samples of each prompt by a reward of its rows, or by log-ratio, and show what the "
        "best of n would give",
    )
    parser.add_argument("--pairs", metavar="FILE", help="preference pairs, as train.dpo reads them")
    parser.add_argument(
        "--models",
        metavar="A,B",
        help="two models whose next-token distributions are compared; with --quantize, each with itself",
    )
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="text for --models; or, with RUN, where the prompts' other fields come from",
    )
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0:2:0.5",
        metavar="STRENGTHS",
        help="with --pairs and --quantize, as in eval.sweep (default %(default)s)",
    )
    parser.add_argument(
        "--num-prompts", type=int, metavar="N", help="the first N pairs or prompts (default: all)"
    )
    parser.add_argument(
        "--rows", default="8", metavar="N", help="completions read at a time (default %(default)s)"
    )
    decoding.add_stop_option(parser, of="--pairs")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="the figures as JSON (--pairs and --models)"
    )
    add_endpoint_options(parser)
    models.add_model_options(parser)
    return parser
