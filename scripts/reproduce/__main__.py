"""Reproduces the paper, small: trains and decodes what is missing, then writes figures and REPRODUCTION.md.

  bash scripts/reproduce.sh                      everything that is missing
  bash scripts/reproduce.sh --smoke              the same at toy size, in minutes, below runs/smoke
  bash scripts/reproduce.sh stories-length-rloo  one experiment
  bash scripts/reproduce.sh --list               what there is, and what is missing

Rows lie in results/reproduction as soon as a sweep has ended; killed anywhere and run again, only what is missing
is made. --jobs=N makes N sweeps at a time, each with a share of the cores: for models as small as these two
processes on a core each are faster than one on two.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax.commands import cli
from dera_jax.experiments import Step
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.runner import Folders, is_kept, make
from scripts.reproduce.smoke import shrink, shrink_step


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m scripts.reproduce`."""
    parser = cli.Parser(__doc__, prog="bash scripts/reproduce.sh")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="(default: all)")
    parser.add_argument("--smoke", action="store_true", help="at toy size")
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--rows-only", action="store_true", help="no figures and no report")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    parser.add_argument(
        "--shared", default="../shared", metavar="DIR", help="models and data (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="models (default runs/reproduce)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="rows, figures (default results/reproduction)"
    )
    args = parser.parse_args(argv)

    recipes = Recipes(args.shared)
    experiments, others = recipes.experiments(), recipes.others()
    if args.smoke:
        experiments = {name: shrink(experiment) for name, experiment in experiments.items()}
        others = {name: list(map(shrink_step, steps)) for name, steps in others.items()}
    known = {name: experiment.measurements() for name, experiment in experiments.items()} | others
    chosen = _chosen(known, args.experiments)
    work = args.work or Path("runs/smoke/work" if args.smoke else "runs/reproduce")
    folders = Folders(work, args.out or Path("runs/smoke/results" if args.smoke else "results/reproduction"))
    steps = [step for several in chosen.values() for step in several]
    missing = [step for step in steps if not is_kept(step, folders)]
    print(f"{len(steps)} measurements in {len(chosen)} experiments, {len(missing)} missing", flush=True)
    if args.list:
        for step in missing:
            print(step.folder)
        return
    if missing and args.jobs > 1:
        _make_side_by_side(args.jobs, sys.argv[1:] if argv is None else argv)
    make(missing, folders)
    if not args.rows_only:
        from scripts.reproduce.report import write_report

        write_report(experiments, others, recipes, folders)


def _chosen(known: Mapping[str, list[Step]], names: Sequence[str]) -> dict[str, list[Step]]:
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"unknown experiment {strange[0]!r}; known: {', '.join(known)}")
    return {name: steps for name, steps in known.items() if not names or name in names}


def _make_side_by_side(jobs: int, argv: Sequence[str]) -> None:
    """Makes rows in several processes, each on a share of the cores; raises SystemExit if one of them fails."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # The last of an option counts.
    words = [sys.executable, "-m", "scripts.reproduce", *argv, "--jobs=1", "--rows-only"]
    running = []
    for job in range(jobs):
        share = cores[job::jobs] or cores
        pin = (lambda share=share: os.sched_setaffinity(0, share)) if cores else None
        running.append(subprocess.Popen(words, preexec_fn=pin))
    if codes := [code for process in running if (code := process.wait())]:
        raise SystemExit(codes[0])


if __name__ == "__main__":
    sys.exit(main())
