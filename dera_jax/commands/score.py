"""Scores what is there already: stored rows, preference pairs, or a model's text under another.

  python -m eval.score RUN --reward=lexicon:FILE         adds a reward to stored rows, no decoding
  python -m eval.score RUN --judge=URL,model --question=mt-bench    a judge's grades, as a reward
  python -m eval.score --pairs=FILE --lambda=0:2:0.5     pairwise accuracy per strength (Eq. 14)
  python -m eval.score --models=A,B --prompts=FILE.txt   KL of A against B per token, on given text
  python -m eval.score --models=A,B --quantize=nf4 --prompts=FILE.txt   quantized against full

Pairs are what train.dpo and train.reward read: `prompt`, `chosen` and `rejected`, texts or lists of
messages; or whole transcripts in the last two. Accuracy is the share of pairs whose chosen
completion has the larger log π(y|x)/|y|; the implicit reward compares log π(y|x)/π_ref(y|x).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models
from dera_jax.commands.options.judges import (
    NAMES,
    add_endpoint_options,
    endpoint_settings,
    refuse_without_endpoint,
)
from dera_jax.commands.process import endings

TEMPLATES = ("chat_template", "reference_chat_template")
OPTIONS = {
    "run": {"reward", "prompts", "judge", "question", *NAMES},
    "pairs": {
        "lambda_",
        "num_prompts",
        "rows",
        "out",
        "reference",
        "aligned",
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
        raise ValueError("expected one of RUN with --reward, --pairs=FILE, or --models=A,B with --prompts")
    for name, value in vars(args).items():
        if name not in {*modes, *OPTIONS[modes[0]]} and value != parser.get_default(name):
            raise ValueError(
                f"--{name.strip('_').replace('_', '-')} has no meaning with {_written(modes[0])}"
            )
    args.command = cli.command_line("eval.score", argv)
    {"run": _score_run, "pairs": _score_pairs, "models": _score_models}[modes[0]](args)


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
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="the figures as JSON (--pairs and --models)"
    )
    add_endpoint_options(parser)
    models.add_model_options(parser)
    return parser


def _score_run(args) -> None:
    from dera_jax.analysis import plots, reports, tables
    from dera_jax.analysis.summaries import summarize
    from dera_jax.common.shown import shown
    from dera_jax.data.prompts import read_prompts
    from dera_jax.results import asked, reading
    from dera_jax.rewards.registry import parse_rewards
    from dera_jax.sweeps.judging import judge_run

    if bool(args.reward) == bool(args.judge):
        raise ValueError("RUN: expected --reward or --judge, what to score its rows with")
    if args.judge:
        rewards, more = _grades(args)
    else:
        refuse_without_endpoint(args, make_parser(), "question")
        rewards, more = parse_rewards(args.reward), None
    columns = {p.prompt_id: p.columns for p in read_prompts(args.prompts)[0]} if args.prompts else {}
    added = judge_run(args.run, rewards, columns, args.command, more, cli.warn)
    rows = reading.read_rows(args.run)
    summaries = summarize(rows)
    reports.write_summary_csv(args.run / "summary.csv", summaries)
    about = reports.describe_models(args.run)
    plots.plot_sweep({args.run.resolve().name: summaries}, args.run / "sweep.png", about)
    print(tables.format_table(summaries))
    for warning in reports.warnings_of(summaries, args.run):
        cli.warn(warning)
    if told := asked.tell_missing(args.run, rows):
        cli.warn(f"{told}; eval.sweep completes the run")
    print(
        f"{shown(args.run)}/: {'rewards added to rows.jsonl' if added else 'nothing to add'}; summary.csv, sweep.png"
    )


def _grades(args) -> tuple[tuple, dict]:
    """Returns the reward of `--judge`, and the judges of a run's manifest with it.

    Raises:
      ValueError: the question is missing, or another judge has answered it for this run.
    """
    from dera_jax.common.shown import shown
    from dera_jax.results.manifests import read_manifest
    from dera_jax.rewards.judges import grade_reward, parse_endpoint

    if not args.question:
        raise ValueError("--judge: expected --question=hallucination|mt-bench, what to ask it")
    endpoint = parse_endpoint(args.judge, **endpoint_settings(args))
    judges = read_manifest(args.run).get("judges", {})
    if judges.get(args.question, endpoint.name) != endpoint.name:
        by = shown(judges[args.question], 100)
        raise ValueError(f"{shown(args.run, 200)} has {args.question} already, by the judge {by}")
    reward = grade_reward(endpoint, args.question, args.max_failures, args.ask_again)
    return (reward,), {"judges": judges | {args.question: endpoint.name}}


def _score_pairs(args) -> None:
    from dera_jax.scoring import pairs
    from dera_jax.strengths import format_strength, parse_strengths

    _, aligned = models.model_names(args)
    lambdas = parse_strengths(args.lambda_, len(aligned or [1]))
    loaded, unread = pairs.load_pairs(args.pairs, args.num_prompts)
    rows = decoding.parse_rows(args.rows, len(loaded))
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)
    encoded, unfit = pairs.encode_pairs(policies, loaded)
    _tell(unread | unfit, args.pairs, len(encoded))
    table = pairs.pairwise_accuracy(policies, encoded, lambdas, rows)
    print(f"{len(encoded)} pairs, completions with EOS; ± is half a 95 % interval over prompts\n")
    print(f"{'λ':>8}  {'accuracy (Eq. 14)':>20}  {'implicit reward':>20}")
    for strength, accuracy, implicit in table:
        print(f"{format_strength(strength):>8}  {_shown(accuracy):>20}  {_shown(implicit):>20}")
    _write(args.out, pairs.as_json(table))


def _score_models(args) -> None:
    from dera_jax.data.prompts import read_prompts
    from dera_jax.policies.hub import split_models

    names = split_models(args.models)
    if len(names) < 2 or not all(names) or (len(names) > 2 and not args.quantize):
        expected = "two or more models" if args.quantize else "two models A,B"
        raise ValueError(f"--models: expected {expected}, found {args.models!r}")
    if not args.prompts:
        raise ValueError("--models: expected --prompts, the text on which to compare them")
    prompts, dropped = read_prompts(args.prompts, args.num_prompts)
    rows = decoding.parse_rows(args.rows, len(prompts))
    (_compare_precisions if args.quantize else _compare_models)(args, names, (prompts, dropped), rows)


def _texts(args, policies, given) -> list:
    """Returns the texts that the models can read, and tells what became of the others."""
    from dera_jax.scoring.divergence import encode_texts

    prompts, unread = given
    texts, unfit = encode_texts(policies, prompts)
    _tell(unread | unfit, args.prompts, len(texts))
    return texts


def _tell(dropped, source: str, used: int) -> None:
    if dropped.count:
        print(dropped.told(source, used), file=sys.stderr)


def _compare_models(args, names: list[str], given: tuple, rows: int) -> None:
    from dera_jax.analysis.estimates import estimate_to_json
    from dera_jax.scoring.divergence import kl_per_token

    mesh = models.open_mesh(args)
    cli.announce_devices()
    # The reference is what the divergence is measured against.
    policies = models.load_models(args, names[::-1], mesh=mesh)
    texts = _texts(args, policies, given)
    found = kl_per_token(policies, texts, rows)
    print(f"KL({names[0]} ‖ {names[1]}) = {_shown(found)} nats per token, on {len(texts)} texts")
    _write(args.out, {"kl_per_token": estimate_to_json(found), "models": names, "prompts": len(texts)})


def _compare_precisions(args, names: list[str], given: tuple, rows: int) -> None:
    """Prints what quantization costs each model and the mixture at each strength."""
    from dera_jax.analysis.estimates import estimate_to_json
    from dera_jax.scoring.precision import precision_cost
    from dera_jax.strengths import format_strength, parse_strengths, strength_to_json

    lambdas = parse_strengths(args.lambda_, len(names) - 1)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    full, lower = (models.load_models(args, names, kind, mesh) for kind in ("none", None))
    texts = _texts(args, full, given)
    found = precision_cost(full, lower, texts, lambdas, rows)
    print(f"KL({args.quantize} ‖ full) in nats per token, on {len(texts)} texts; Σ|w| is what errors of")
    print("logits are multiplied by at most; ± is half a 95 % interval over texts\n")
    print(f"{'λ':>8}  {'Σ|w|':>5}  {'KL per token':>22}  {'same first choice':>20}")
    for cost in found:
        strength = format_strength(cost.lambda_)
        print(
            f"{strength:>8}  {cost.amplification:>5.3g}  {_shown(cost.kl):>22}  {_shown(cost.same_choice):>20}"
        )
    table = [
        {
            "lambda": strength_to_json(cost.lambda_),
            "amplification": cost.amplification,
            "kl_per_token": estimate_to_json(cost.kl),
            "same_choice": estimate_to_json(cost.same_choice),
        }
        for cost in found
    ]
    _write(args.out, {"quantize": args.quantize, "models": names, "prompts": len(texts), "strengths": table})


def _shown(found) -> str:
    """Returns `mean ± half-width` of an `Estimate`, without the latter where it is not known."""
    if found is None:
        return "—"
    return f"{found.mean:.4g}" + (f" ± {found.half_width:.2g}" if found.half_width >= 0 else "")


def _write(path: Path | None, figures) -> None:
    from dera_jax.common.json_files import write_json

    if path:
        write_json(path, figures)
        print(path)
