"""Reproduces the paper, small: trains and decodes what is missing, then writes figures and REPRODUCTION.md.

  bash scripts/reproduce.sh                      everything that is missing
  bash scripts/reproduce.sh --smoke              the same at toy size, in minutes, below runs/smoke
  bash scripts/reproduce.sh stories-length-rloo  one experiment
  bash scripts/reproduce.sh --list               what is missing
  bash scripts/reproduce.sh --report             figures and report from the rows that are there
  bash scripts/reproduce.sh --preset=zephyr-7b   an experiment at the paper's size, in runs/zephyr-7b

Rows lie in results/reproduction as soon as a sweep has ended; killed anywhere and run again, only what is missing
is made. --jobs=N makes N sweeps at a time, each with a share of the cores: for models as small as these two
processes on a core each are faster than one on two.
"""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.commands.process import endings
from dera_jax.common.folders import data_folder
from dera_jax.experiments.declare import Step
from dera_jax.experiments.presets import Preset, find_preset
from scripts.reproduce import convergence
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.runner import Folders, check_data, is_kept, make
from scripts.reproduce.smoke import exchange, shrink, shrink_preset, shrink_step
from scripts.reproduce.stand_ins import write_stand_ins
from scripts.reproduce.training_length import NAME, of_lengths


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m scripts.reproduce`."""
    parser = cli.Parser("bash scripts/reproduce.sh", __doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="(default: all)")
    parser.add_argument("--smoke", action="store_true", help="at toy size")
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--rows-only", action="store_true", help="no figures and no report")
    parser.add_argument("--report", action="store_true", help="figures and report only, make no rows")
    parser.add_argument(
        "--allow-missing", action="store_true", help="write the report although measurements are missing"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes (default 2; 1 with --preset, whose device is not shared)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="of dera_jax/experiments/presets.py; an unknown one lists them"
    )
    parser.add_argument(
        "--print", action="store_true", help="with --preset: its record and its commands in order, and stop"
    )
    parser.add_argument(
        "--instead", action="append", default=[], metavar="NAME=OTHER",
        help="with --preset: another model or data set (a file, say) for one it names; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="what scripts/get_data.py has got (default DERA_DATA; with --smoke stand-ins of it, made here)",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="models (default runs/reproduce, runs/PRESET)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="rows, figures (default results/reproduction, WORK/results)"
    )
    args = parser.parse_args(argv)

    if args.preset:
        _make_preset(args, argv)
        return
    if args.print or args.instead:
        raise ValueError(f"--{'print' if args.print else 'instead'} has a meaning only with --preset")
    recipes = Recipes()
    experiments = recipes.experiments()
    others = recipes.others() | {convergence.NAME: convergence.trainings(recipes)}
    lengths = of_lengths(recipes.stories_length("rloo"))
    if args.smoke:
        experiments = {name: shrink(experiment) for name, experiment in experiments.items()}
        lengths = {steps: shrink(lengths[steps]) for steps in [max(lengths)]}
        others = {name: list(map(shrink_step, steps)) for name, steps in others.items()}
    others[NAME] = [step for experiment in lengths.values() for step in experiment.measurements()]
    known = {name: experiment.measurements() for name, experiment in experiments.items()} | others
    chosen = _chosen(known, args.experiments)
    work = args.work or Path("runs/smoke/work" if args.smoke else "runs/reproduce")
    out = args.out or Path("runs/smoke/results" if args.smoke else "results/reproduction")
    folders = Folders(work, out, _data(args, work))
    if not args.report:
        _make([step for several in chosen.values() for step in several], folders, args, argv, jobs=2)
    if args.rows_only or args.list:
        return
    missing = [s.folder for steps in known.values() for s in steps if not is_kept(s, folders)]
    if missing and not args.allow_missing:
        raise ValueError(
            f"no report: {len(missing)} measurements are missing, the first {missing[0]}; make them, or "
            "--allow-missing writes it with what is there"
        )
    check_data([recipes.e2e, recipes.openings], folders)  # texts beside whose words a report holds the rows'
    from scripts.reproduce.report import write_report

    write_report(experiments, lengths, others, recipes, folders)


def _make(
    steps: Sequence[Step], folders: Folders, args: Namespace, argv: Sequence[str] | None, jobs: int
) -> None:
    """Makes what is missing of the measurements, or says what that is."""
    missing = [step for step in steps if not is_kept(step, folders)]
    print(f"{len(steps)} measurements, {len(missing)} missing", flush=True)
    if args.list:
        for step in missing:
            print(step.folder)
        return
    check_data(missing, folders)
    if missing and (args.jobs or jobs) > 1:
        _make_side_by_side(args.jobs or jobs, sys.argv[1:] if argv is None else argv)
    make(missing, folders)


def _make_preset(args: Namespace, argv: Sequence[str] | None) -> None:
    """Makes, or prints, an experiment of the paper's size."""
    if args.experiments:
        raise ValueError(
            f"--preset={args.preset}: expected no experiment beside it, found {args.experiments[0]}"
        )
    preset = find_preset(args.preset)
    experiment = exchange(preset.experiment, dict(map(_instead, args.instead)))
    if args.smoke:
        experiment = shrink_preset(experiment)
    work = args.work or Path("runs", *["smoke"] * args.smoke, args.preset)
    folders = Folders(work, args.out or work / "results", _data(args, work))
    steps = experiment.measurements()
    if args.print:
        print("\n".join(_script(preset, steps, folders)))
        return
    _make(steps, folders, args, argv, jobs=1)
    if not (args.list or args.rows_only or args.smoke):
        print("\nwhat remains is for a judge:", *_after(preset, folders), sep="\n")


def _data(args: Namespace, work: Path) -> Path:
    """Returns where the data lies; stand-ins are made."""
    if args.data or not args.smoke:
        return args.data or data_folder()
    made = work / "stand-ins" / "data"
    write_stand_ins(made)
    return made


def _instead(text: str) -> tuple[str, str]:
    name, equals, other = text.partition("=")
    if not (name and equals and other):
        raise ValueError(f"--instead: expected NAME=OTHER, found {text!r}")
    return name, other


def _script(preset: Preset, steps: Sequence[Step], folders: Folders) -> list[str]:
    """Returns a preset's record and its commands, each behind those it needs."""
    lines = [f"# {line}".rstrip() for line in preset.record.split("\n")]
    for step in _in_order(steps):
        needs = ", ".join(need.folder for need in step.needs()) or "nothing made here"
        lines += ["", f"# {step.folder} needs {needs}", _command(step, folders)]
    return [*lines, "", f"# with the rows of the above in {folders.results}, as this script keeps them",
            *_after(preset, folders)]  # fmt: skip


def _after(preset: Preset, folders: Folders) -> list[str]:
    return [line.replace("{results}", str(folders.results)) for line in preset.after]


def _in_order(steps: Sequence[Step]) -> list[Step]:
    """Returns steps and all they need, each once and behind what it needs."""
    found: dict[Step, None] = {}
    for step in steps:
        found.update(dict.fromkeys([*_in_order(step.needs()), step]))
    return list(found)


def _command(step: Step, folders: Folders) -> str:
    """Returns a step as a shell takes it."""
    if ":" not in step.command:
        return shlex.join(["python", "-m", *step.words(folders.work, folders.data)])
    module, _, function = step.command.partition(":")
    arguments = step.arguments(folders.work, folders.data).items()
    given = ", ".join(f"{name}={value!r}" for name, value in arguments if name != "out")
    call = f"{function}(Path({f'{folders.work}/{step.folder}'!r}), {given})"
    return shlex.join(["python", "-c", f"from pathlib import Path; from {module} import {function}; {call}"])


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
