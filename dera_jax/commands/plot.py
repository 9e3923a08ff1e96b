"""Draws the figure of one or several sweeps, or prints their table.

  python -m eval.plot runs/RUN
  python -m eval.plot runs/A runs/B --out=both.png
  python -m eval.plot runs/RUN --table=markdown

  python -m eval.plot runs/RUN --trace            what a search has looked at (eval.sweep --trace)
  python -m eval.plot runs/ALPHA --over=dial      runs of eval.sweep --sweep, over the dial

Several sweeps are drawn in the same panels, each with its own colour and marker. The folder of a
sweep over a dial stands for the runs in it.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.plot`."""
    parser = cli.Parser("plot", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a sweep's folder, or its rows.jsonl[.gz|.xz]"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png",
        help="the figure (default: sweep.png in the first run's folder)",
    )
    parser.add_argument(
        "--trace",
        nargs="?",
        const="",
        metavar="PROMPT_ID",
        help="draw the candidates of every decision for a prompt, at each strength (default: the first prompt), "
        "into trace.png",
    )
    parser.add_argument("--table", choices=("terminal", "markdown", "latex"), help="print a table instead")
    parser.add_argument(
        "--over",
        choices=("strength", "dial"),
        default="strength",
        help="draw over λ, or over the dial that the runs differ in, with a curve for each λ (default %(default)s)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="show a run that is not complete, with a warning"
    )
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.plot`."""
    args = make_parser().parse_args(argv)
    cli.check_file("--out", args.out, ".png")
    if args.trace is not None:
        _plot_trace(args)
        return

    from dera_jax.analysis import dials, reports, tables
    from dera_jax.analysis.best_of import tell_search
    from dera_jax.analysis.summaries import summarize
    from dera_jax.common.shown import shown
    from dera_jax.results import reading
    from dera_jax.results.asked import check_whole
    from dera_jax.results.rows import WHOLE

    summaries = {}
    runs = [run for given in args.runs for run in dials.runs_in(given)]
    for run in runs:
        rows = reading.read_rows(run, WHOLE)
        if not rows:
            raise ValueError(f"{shown(run, 200)}: no rows yet")
        check_whole(run, rows, args.allow_missing, "shows what is there", to_its_end=True, tell=cli.warn)
        if told := tell_search(rows):
            cli.warn(f"{shown(run, 200)}: {told}")
        summaries[_name(run, runs)] = summarize(rows)
    if args.table:
        for name, found in summaries.items():
            title = [shown(name)] if len(summaries) > 1 else []
            print("\n".join([*title, tables.format_table(found, style=args.table)]))
        return
    from dera_jax.analysis import plots

    out = args.out or _folder(args.runs[0]) / "sweep.png"
    pairs = dict.fromkeys(filter(None, map(reports.describe_models, runs)))
    dial, curves = dials.over_dial(summaries) if args.over == "dial" else ("λ", summaries)
    plots.plot_sweep(curves, out, "; ".join(pairs), dial)
    print(shown(out))


def _plot_trace(args) -> None:
    """Draws what the searches of one prompt looked at."""
    from dera_jax.analysis.search_trees import plot_trees
    from dera_jax.common.shown import shown
    from dera_jax.results import reading
    from dera_jax.results.rows import WHOLE, sort_rows

    if len(args.runs) > 1 or args.table:
        raise ValueError("--trace: expected one RUN, and no --table")
    rows = [
        row for row in sort_rows(reading.read_rows(args.runs[0], WHOLE)) if row.get("search", {}).get("trace")
    ]
    if not rows:
        raise ValueError(
            f"{shown(args.runs[0], 200)}: expected rows with what a search looked at, found none; "
            "eval.sweep --draw=… --trace keeps it"
        )
    wanted = args.trace or str(rows[0]["prompt_id"])
    own = [row for row in rows if str(row["prompt_id"]) == wanted]
    if not own:
        known = ", ".join(dict.fromkeys(str(row["prompt_id"]) for row in rows))
        raise ValueError(
            f"--trace={shown(wanted, 80)}: no rows of this prompt; there are {shown(known, 300)}"
        )
    out = args.out or _folder(args.runs[0]) / "trace.png"
    plot_trees([row for row in own if row["sample"] == own[0]["sample"]], out)
    print(shown(out))


def _name(run: Path, runs: Sequence[Path]) -> str:
    """Returns a run's name: its folder's, or the path as written where two have one name."""
    names = [_folder(path).resolve().name for path in runs]
    name = _folder(run).resolve().name
    return str(run) if names.count(name) > 1 else name


def _folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent
