"""A sweep over a dial beside λ: a run for each value, and all of them in one figure."""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.commands.options.dials import Value
from dera_jax.commands.parts.sweep_progress import run_plan
from dera_jax.commands.parts.sweep_report import report, tell_plan
from dera_jax.common.shown import shown


def check_folder(out: Path) -> None:
    """Raises ValueError where the folder of all runs is a run itself."""
    if (out / "manifest.json").exists():
        raise ValueError(
            f"--out: {shown(out, 200)} is a run; --sweep writes a run for each value into a folder of their own"
        )


def run_values(plan, values: Sequence[Value], out: Path, prompts: str, words: Sequence[str]) -> None:
    """Decodes a plan at each value of a dial, whose program is one, each into its folder in `out`.

    Args:
      values: of `options.dials.values_of`.
      prompts: the PROMPTS argument, for the manifests.
      words: of the command line.
    """
    from dera_jax.analysis.tuning.retraining import replaced
    from dera_jax.devices.processes import leads

    # Whatever is wrong with one is known before the first.
    plans = [value.of(plan) for value in values]
    folders = [out / value.folder for value in values]
    for folder in folders:
        cli.check_folder(folder)
    for value, each, folder in zip(values, plans, folders, strict=True):
        if leads():
            cli.tell(value.folder)
        own = replaced(words, value.options | {"out": str(folder)})
        rows, seconds, used = run_plan(each, folder, prompts, cli.command_line("eval.sweep", own))
        if leads():
            report(folder, rows, seconds, used)
    if leads():
        draw_values(folders, out / "sweep.png")


def tell_values(plan, values: Sequence[Value], out: Path) -> str:
    """Returns what each of the runs would decode."""
    return "\n\n".join(f"{value.folder}\n{tell_plan(value.of(plan), out / value.folder)}" for value in values)


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
