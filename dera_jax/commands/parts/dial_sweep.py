"""A sweep over a dial beside λ: a run for each value, and all of them in one figure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.commands.parts.sweep_progress import run_plan
from dera_jax.commands.parts.sweep_report import report, tell_plan
from dera_jax.common.shown import shown
from dera_jax.rules.known import NamedRule


def check_folder(out: Path) -> None:
    """Raises ValueError where the folder of all runs is a run itself."""
    if (out / "manifest.json").exists():
        raise ValueError(
            f"--out: {shown(out, 200)} is a run; --sweep writes a run for each value into a folder of their own"
        )


def run_values(
    plan, rules: Sequence[tuple[str, NamedRule]], out: Path, prompts: str, words: Sequence[str]
) -> None:
    """Decodes a plan with each of several rules, whose program is one, each into its folder in `out`.

    Args:
      rules: by the name of the folder, of `options.dials.rules_of`.
      prompts: the PROMPTS argument, for the manifests.
      words: of the command line.
    """
    from dera_jax.analysis.tuning.retraining import replaced
    from dera_jax.devices.processes import leads

    # Whatever is wrong with one is known before the first.
    plans = [(name, replace(plan, rule=rule)) for name, rule in rules]
    for name, each in plans:
        if leads():
            cli.tell(name)
        own = replaced(words, {"rule": each.rule.name, "out": str(out / name)})
        rows, seconds, used = run_plan(each, out / name, prompts, cli.command_line("eval.sweep", own))
        if leads():
            report(out / name, rows, seconds, used)
    if leads():
        draw_values([out / name for name, _ in plans], out / "sweep.png")


def tell_values(plan, rules: Sequence[tuple[str, NamedRule]], out: Path) -> str:
    """Returns what each of the runs would decode."""
    return "\n\n".join(f"{name}\n{tell_plan(replace(plan, rule=rule), out / name)}" for name, rule in rules)


def draw_values(runs: Sequence[Path], path: Path) -> None:
    """Draws runs that differ in a dial, over λ or, where there is one strength, over the dial."""
    from dera_jax.analysis import plots, reports
    from dera_jax.analysis.dials import over_dial
    from dera_jax.analysis.summaries import summarize
    from dera_jax.results.reading import read_rows
    from dera_jax.results.rows import WHOLE

    found = {run.name: summarize(read_rows(run, WHOLE)) for run in runs}
    about = "; ".join(dict.fromkeys(map(reports.describe_models, runs)))
    strengths = {summary.lambda_ for summaries in found.values() for summary in summaries}
    alone = len(strengths) == 1 and len(found) > 1
    dial, curves = over_dial(found) if alone else ("λ", found)
    plots.plot_sweep(curves, path, about, dial)
    print(f"{shown(path.parent)}/: {', '.join(found)}; sweep.png has all of them")
