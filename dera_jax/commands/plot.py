"""Draws the figure of one or several sweeps, or prints their table.

python -m eval.plot runs/RUN
python -m eval.plot runs/A runs/B --out=both.png
python -m eval.plot runs/RUN --table=markdown
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands import cli


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.plot`."""
    parser = cli.Parser(__doc__, prog="python -m eval.plot")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a sweep's folder, or its rows.jsonl[.gz]"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png",
        help="the figure (default: sweep.png in the first run's folder)",
    )
    parser.add_argument("--table", choices=("terminal", "markdown", "latex"), help="print a table instead")
    args = parser.parse_args(argv)

    from dera_jax import metrics, plots, results, tables

    summaries = {}
    for run in args.runs:
        rows = results.read_rows(run)
        if not rows:
            raise ValueError(f"{run}: no rows yet")
        summaries[_name(run, args.runs)] = metrics.summarize(rows)
    if args.table:
        for name, found in summaries.items():
            title = [name] if len(summaries) > 1 else []
            print("\n".join([*title, tables.format_table(found, style=args.table)]))
        return
    first = args.runs[0]
    out = args.out or (first if first.is_dir() else first.parent) / "sweep.png"
    plots.plot_sweep(summaries, out)
    print(out)


def _name(run: Path, runs: Sequence[Path]) -> str:
    names = [path.resolve().name for path in runs]
    return str(run) if names.count(run.resolve().name) > 1 else run.resolve().name
