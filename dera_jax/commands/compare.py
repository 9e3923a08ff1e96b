"""Compares two runs by a judge: at each strength, how often are A's completions the better ones?

  python -m eval.compare A B --judge=model:DIR                       equal strengths of two runs
  python -m eval.compare RUN RUN --against=0 --judge=URL,model       one run against its reference
  python -m eval.compare A B --lambda=2 --against=1 --judge=…        against a model retrained at β/2

Completions of the same prompt, sample and turn are compared; ties count half. The judge is a reward (the
larger value wins) or a language model behind an OpenAI-compatible URL, http://host/v1,model, which sees the
two in random order. Its answers are stored; rerun the command to resume.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, judges
from dera_jax.commands.parts.compare_lines import share_of_first, warnings_of
from dera_jax.commands.process import endings

COMPARED = ("prompt", "completion", "length", "finish_reason", "rewards")
"""Fields of rows that judges look at, beside those that tell them apart."""


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.compare`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    cli.check_file("--out", args.out, ".json")

    from dera_jax.analysis.compare import compare, comparison_to_json, format_comparisons
    from dera_jax.common.json_files import write_json
    from dera_jax.common.provenance import provenance
    from dera_jax.common.shown import shown
    from dera_jax.results.asked import check_whole
    from dera_jax.results.reading import read_rows

    same = args.run_a.resolve() == args.run_b.resolve()
    if same and args.against is None:
        raise ValueError("RUN_A and RUN_B are one run: expected --against=STRENGTH, what to compare it with")
    judge = _judge(args, parser)
    rows_a = read_rows(args.run_a, COMPARED)
    rows_b = rows_a if same else read_rows(args.run_b, COMPARED)
    lambdas, against = _strengths(args.lambda_, rows_a), _against(args.against, rows_b)
    others = lambdas if against is None else [against]
    for run, rows, strengths in ((args.run_a, rows_a, lambdas), (args.run_b, rows_b, others)):
        check_whole(run, rows, args.allow_missing, "compares what both have", strengths, tell=cli.warn)
    names = shown(args.run_a, 200), shown(args.run_b, 200)
    found = compare(
        rows_a, rows_b, judge, lambdas=lambdas, against=against, allow_missing=args.allow_missing, names=names
    )
    print(format_comparisons(found, args.table))
    if args.table == "terminal":
        share, total = share_of_first(found)
        told = "" if share is None else f"; what was shown first won {share:.0%} of {total}"
        print(f"\nA: {names[0]}, B: {names[1]}; {shown(_about(args))}{told}")
    for line in warnings_of(found, args):
        cli.warn(line)
    if args.out:
        asked = {"question": args.question, "both_orders": args.both_orders, "seed": args.seed}
        write_json(
            args.out,
            {
                "a": str(args.run_a),
                "b": str(args.run_b),
                "judge": {"name": args.judge, **(asked if _by_model(args) else {})},
                "strengths": [comparison_to_json(each) for each in found],
                "provenance": provenance(cli.command_line("eval.compare", argv)),
            },
        )
        print(shown(args.out), file=sys.stdout if args.table == "terminal" else sys.stderr)


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.compare`."""
    parser = cli.Parser("compare", __doc__)
    parser.add_argument(
        "run_a", type=Path, metavar="RUN_A", help="a sweep's folder, or its rows.jsonl[.gz|.xz]"
    )
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="the run to compare with; may be the same")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="JUDGE",
        help=f"URL,model such as http://host/v1,name, or a reward: {cli.REWARDS}",
    )
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        metavar="STRENGTHS",
        help="strengths of A, as in eval.sweep (default: all)",
    )
    parser.add_argument(
        "--against",
        metavar="STRENGTH",
        help="one strength of B to compare all those of A with (default: the same strength)",
    )
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="where the prompts' other fields come from, for rewards that use them",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="compare the cells that both have, and say how many are missing",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the figures, with how they were made")
    parser.add_argument(
        "--table", default="terminal", choices=("terminal", "markdown", "latex"), help="(default %(default)s)"
    )
    parser.add_argument(
        "--question", default="chat", choices=("summary", "chat"),
        help="what a judge behind a URL is asked: which summary, or which answer is better (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--both-orders",
        action="store_true",
        help="it sees each pair in both orders; if it disagrees with itself, they tie",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of which one it sees first (default %(default)s)"
    )
    judges.add_endpoint_options(parser)
    return parser


def _by_model(args) -> bool:
    from dera_jax.rewards.judges import is_endpoint

    return is_endpoint(args.judge)


def _judge(args, parser: cli.Parser):
    """Returns the judge that the arguments name."""
    from dataclasses import replace
    from functools import cache

    from dera_jax.data.prompts import read_prompts
    from dera_jax.results.manifests import read_manifest
    from dera_jax.rewards.judges import parse_judge
    from dera_jax.sweeps.judging import decoder

    if _by_model(args):
        if args.prompts:
            raise ValueError("--prompts has a meaning only with a reward as judge")
        more = {name: getattr(args, name) for name in ("both_orders", "seed", "max_failures", "ask_again")}
        return parse_judge(args.judge, args.question, **more, **judges.endpoint_settings(args))
    judges.refuse_without_endpoint(args, parser, "question", "both_orders", "seed")
    columns = {p.prompt_id: p.columns for p in read_prompts(args.prompts)[0]} if args.prompts else {}

    def decode(run: Path):
        # The manifest is read when a reward asks for text.
        made = cache(lambda: decoder(read_manifest(run)))
        return lambda tokens: made()(tokens)

    return replace(parse_judge(args.judge), columns=columns, decode=(decode(args.run_a), decode(args.run_b)))


def _strengths(text: str | None, rows: Sequence[dict]):
    """Returns the strengths that `--lambda` or `--against` lists; None without."""
    from dera_jax.strengths import parse_strengths, strength_from_json

    aligned = len(strength_from_json(rows[0]["lambda"])) if rows else 1
    return None if text is None else parse_strengths(text, aligned)


def _against(text: str | None, rows: Sequence[dict]):
    try:
        found = _strengths(text, rows)
    except ValueError as error:
        raise ValueError(str(error).replace("--lambda", "--against", 1)) from None
    if found is not None and len(found) != 1:
        raise ValueError(f"--against: expected one strength, found {len(found)} in {text!r}")
    return found and found[0]


def _about(args) -> str:
    from dera_jax.common.shown import shown

    judge = f"judge: {shown(args.judge)}"
    if _by_model(args):
        judge += f", asked for the better {'summary' if args.question == 'summary' else 'answer'}"
        judge += ", in both orders" if args.both_orders else ", in random order"
    return f"{judge}; ties count half; ± is half a 95 % interval over prompts"
