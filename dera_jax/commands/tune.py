"""Picks the strength that is best by an objective, on some of a sweep's prompts, and judges it on the others.

  python -m eval.tune RUN --objective=slots --kl-price=0.02
  python -m eval.tune RUN --objective=length:40:60 --constraint='slots>=-2%' --constraint='kl<=5'
  python -m eval.tune RUN --objective=win-rate --judge=model:DIR --against=0
  python -m eval.tune RUN --retrain
  python -m eval.tune RUN/curve.json --objective=slots

It prints λ*, its value with a 95 % interval on prompts that were not used for the choice, and β* = β/λ*,
the β to retrain with. --retrain trains that model with the command that the aligned model recorded,
decodes it as RUN was decoded, and compares the two; rerun the command to resume. Both commands are shown
first. Code that they name (`--reward=python:…`, --rule, --draw) runs only if it is named here as well.

A constraint bounds the mean of a reward, of `kl` (nats) or of `length` (tokens): NAME>=NUMBER or
NAME<=NUMBER; a number with % is the change allowed from λ = 0 (>=-2%: it falls by 2 % at most). λ* meets
all constraints on the prompts of the choice; the report says whether they hold on the others.

--dual needs completions at λ = 0 alone, several of a prompt: it tells the λ at which a model at its optimum
meets --constraint='REWARD>=NUMBER', or with --objective the weight of that reward beside the objective.

A curve of eval.curve has strengths between those that were decoded; λ* comes with an interval.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.commands.parts import tuning
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.tune`."""
    parser = cli.Parser("tune", __doc__)
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a sweep's folder, its rows.jsonl[.gz|.xz], or a curve's curve.json",
    )
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--objective",
        metavar="REWARD|win-rate",
        help="the mean of a reward of the rows, or how often a completion beats that at --against "
        "(default: the only reward)",
    )
    group.add_argument(
        "--judge", metavar="REWARD", help="of a win rate: the larger value wins, a tie is half a win"
    )
    group.add_argument(
        "--against", metavar="STRENGTH", help="λ to compute win rates against (default: 0, the reference)"
    )
    group.add_argument(
        "--kl-price",
        type=float,
        default=0.0,
        metavar="PRICE",
        help="what each nat of KL from the reference costs, in units of the objective (default %(default)g)",
    )
    group.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="BOUND",
        help="such as 'slots>=-2%%', 'slots>=0.8' or 'kl<=5'; may be repeated",
    )
    group.add_argument(
        "--dual",
        action="store_true",
        help="from the completions at λ = 0 alone, the strength that meets the constraint (arXiv:2405.19544)",
    )
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--validation",
        default="0.5",
        metavar="SHARE|RUN",
        help="share of the prompts to evaluate the choice on, or a second run of the same models on other prompts "
        "(default %(default)s)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of that selection (default %(default)s)"
    )
    group.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out completions that are missing at some strength",
    )
    group = parser.add_argument_group("retraining")
    group.add_argument(
        "--beta",
        metavar="B[,B…]",
        help="KL strength of the aligned model, or of each (default: as in the rows and manifests)",
    )
    group.add_argument(
        "--aligned",
        metavar="MODEL[,MODEL…]",
        help="where the aligned models are now, if they were moved",
    )
    group.add_argument("--retrain", action="store_true", help="train at β* and compare")
    group.add_argument(
        "--retrain-out",
        type=Path,
        metavar="DIR",
        help="folder for the retrained model and its sweep (default runs/<aligned>-beta=<β*>)",
    )
    group.add_argument(
        "--prompts", metavar="PROMPTS", help="where the prompts of the run are now, if they were moved"
    )
    group.add_argument(
        "--reward",
        metavar="REWARD[,REWARD…]",
        help="rewards of the recorded commands that are code and may be run: python:module:function",
    )
    for name, metavar in (("--rule", "MODULE:FUNCTION"), ("--draw", "DRAW")):
        told = f"{name[2:]} of the recorded command that is code and may be run"
        group.add_argument(name, metavar=metavar, help=told)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all numbers as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the objective against λ")
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.tune`."""
    args = make_parser().parse_args(argv)
    for name in ("retrain_out", "reward", "rule", "draw"):
        if getattr(args, name) and not args.retrain:
            raise ValueError(f"{cli.option(name)} has no meaning without --retrain")
    cli.check_file("--out", args.out, ".json")
    cli.check_file("--plot", args.plot, ".png")
    if args.dual:
        from dera_jax.commands.parts.dual import tell_dual

        tell_dual(args, cli.command_line("eval.tune", argv))
        return
    share = _share(args.validation)

    from dera_jax.analysis.tuning import choose, objectives, report, runs
    from dera_jax.analysis.tuning.beta import make_target
    from dera_jax.analysis.tuning.retraining import model_manifest
    from dera_jax.common.provenance import provenance
    from dera_jax.common.shown import shown

    run = runs.read_run(args.run)
    second = runs.read_run(Path(args.validation)) if share is None else None
    if run.is_curve:
        tuning.check_curve(args, run)
    objective = tuning.make_objective(args, run)
    constraints = [objectives.parse_constraint(text, run.rewards) for text in args.constraint]
    names = list(dict.fromkeys([*objective.names, *(each.name for each in constraints)]))
    choosing, validation = (
        runs.parts_of_two(run, second, names, args.allow_missing, tell=cli.tell)
        if second
        else runs.parts_of_one(run, names, share, args.seed, args.allow_missing, cli.tell)
    )
    models = runs.model_names(run, args.aligned)
    manifests = [model_manifest(name) if name else None for name in models]
    betas = runs.known_betas(run, manifests, args.beta)
    found = choose.tune(choosing, validation, objective, constraints)
    star = found.choice.strength
    targets = [make_target(*each, run.reference) for each in zip(star, betas, manifests, strict=True)]

    told = found, objective, constraints, targets
    print(report.format_tuning(*told))
    figures = {"run": str(args.run), "validation": args.validation, "seed": args.seed}
    figures |= report.tuning_to_json(*told)
    figures["provenance"] = provenance(cli.command_line("eval.tune", argv))
    tuning.write_figures(args, told, figures)
    if args.retrain:
        from dera_jax.commands.parts import retrain

        plan = retrain.Plan(
            run, second or run, validation, objective, constraints, names, models, manifests, targets
        )
        named = retrain.Named(retrain.recorded.split_rewards(args.reward), args.rule, args.draw)
        retrained = retrain.retrain(
            plan, found.choice, args.retrain_out, args.prompts, args.allow_missing, named
        )
        if retrained is None:
            print("\n--retrain: λ* = 1 is the aligned model itself: there is nothing to train")
        else:
            print("\n" + report.format_retrained(retrained, star))
            figures["retrained"] = report.retrained_to_json(retrained, star)
            tuning.write_figures(args, told, figures, retrained.objective)
    if written := [shown(path) for path in (args.out, args.plot) if path]:
        print("\n" + ", ".join(written))


def _share(text: str) -> float | None:
    """Returns the share of --validation, None for a run."""
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ValueError(f"--validation: expected a share between 0 and 1, or a run, found {text}")
    return share
