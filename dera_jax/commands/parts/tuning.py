"""What a choice of a strength is by, and the files that tell of it."""


def check_curve(args, run) -> None:
    """Raises ValueError where something is asked of a curve that needs completions at its strengths."""
    for asked, name in ((args.retrain, "--retrain"), (args.objective == "win-rate", "--objective=win-rate")):
        if asked:
            raise ValueError(
                f"{name}: expected a sweep's completions at each strength, found the curve {run.name}"
            )


def make_objective(args, run):
    """Returns the objective that the options name."""
    from dera_jax.analysis.tuning import grid, objectives
    from dera_jax.strengths import parse_strengths

    if args.against is not None and args.objective != grid.WIN_RATE:
        raise ValueError(f"--against has no meaning without --objective={grid.WIN_RATE}")
    against = (0.0,) * run.models if args.against is None else parse_strengths(args.against, run.models)[0]
    return objectives.make_objective(args.objective, args.judge, against, args.kl_price, run.rewards)


def write_figures(args, told: tuple, figures: dict, retrained=None) -> None:
    """Writes what --out and --plot ask for."""
    from dera_jax.common.json_files import write_json

    if args.out:
        write_json(args.out, figures)
    if args.plot:
        from dera_jax.analysis.reports import describe_models
        from dera_jax.analysis.tuning.figure import plot_tuning

        found, objective, constraints, targets = told
        beta = targets[0].beta if len(targets) == 1 else None
        plot_tuning(found, objective, constraints, args.plot, beta, retrained, describe_models(args.run))
