"""Finds how a model was decoded from its completions: strength, temperature, top-k and top-p.

  python -m eval.audit RUN                              a sweep of one strength
  python -m eval.audit RUN --lambda=0.5                 one strength of several
  python -m eval.audit FILE.jsonl --reference=DIR --aligned=DIR    prompts with completions from elsewhere
  python -m eval.audit FILE.jsonl --expect=lambda=1,temperature=0.7,top_k=none

FILE.jsonl has on each line a prompt (`prompt` or `messages`) and its completion, a text (`completion`) or, better, its
token ids (`tokens`, with EOS where it ended). Both models read the completions once; what they were drawn from is
found by maximum likelihood, with 95 % intervals.

With --expect the exit code is 1 where a figure disagrees with what is expected of it.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, models
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.audit`."""
    parser = cli.Parser("audit", __doc__)
    parser.add_argument(
        "given", type=Path, metavar="RUN|FILE", help="a sweep's folder or its rows.jsonl[.gz|.xz], or completions"
    )  # fmt: skip
    parser.add_argument(
        "--lambda", dest="lambda_", metavar="STRENGTH", help="with RUN: the strength whose completions are looked at"
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="the temperature if it is known, above 0 (default: it is found)"
    )  # fmt: skip
    parser.add_argument(
        "--expect", metavar="NAME=NUMBER[,…]",
        help="what is expected of lambda, temperature, top_k and top_p (of these two also `none`)",
    )  # fmt: skip
    parser.add_argument(
        "--num-prompts", type=int, metavar="N", help="the first N lines of FILE (default: all)"
    )
    parser.add_argument(
        "--rows", default="8", metavar="N", help="completions read at a time (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the figures as JSON")
    models.add_model_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m eval.audit`; 1 where an expectation is not met."""
    met: list[bool] = []
    code = _audit(met)(argv)
    return code or int(not all(met))


def _audit(met: list[bool]):
    @endings.command
    def audit(argv: Sequence[str] | None) -> None:
        from dera_jax.analysis.audit import parse_expected
        from dera_jax.commands.parts.audit import audit_completions

        parser = make_parser()
        args = parser.parse_args(argv)
        cli.check_file("--out", args.out, ".json")
        expected = parse_expected(args.expect)
        if args.temperature is not None and not 1e-3 <= args.temperature <= 1e3:
            raise ValueError(
                f"--temperature: expected a number from 0.001 to 1000, found {args.temperature:g}"
            )
        met.append(audit_completions(args, expected, cli.command_line("eval.audit", argv)))

    return audit
