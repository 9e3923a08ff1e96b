"""The rows of a run, given another reward or a judge's grades."""

from dera_jax.commands.options import cli
from dera_jax.commands.options.judges import endpoint_settings, refuse_without_endpoint


def score_run(args, parser: cli.Parser) -> None:
    """Judges the rows of a run and shows its table."""
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
        refuse_without_endpoint(args, parser, "question")
        rewards, more = parse_rewards(args.reward), None
    prompts = read_prompts(args.prompts, settings=args.chat_template_kwargs)[0] if args.prompts else []
    columns = {prompt.prompt_id: prompt.columns for prompt in prompts}
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
