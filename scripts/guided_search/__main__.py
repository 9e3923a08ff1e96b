"""Guided search measured: what searches gain over plain decoding at the same strength, and what they cost.

  PYTHONPATH=. python -m scripts.guided_search [EXPERIMENT…] --work=runs/guided_search --out=results/guided_search

  concepts   stories that say given words: plain, prompted, DeAL, blocks, beams, best of n at equal forward passes
  slots      a T5's sentences about restaurants: length limit and slots
  rewards    chats: two reward models with weights from (1, 0) to (0, 1); DeAL, best of n and an instruction
  on-top     a reward by alignment, by DeAL, and by both
  injection  harmful requests whose answers are begun in agreement
  frontier   reward against KL: realignment, best of n, controlled decoding, DeAL

Sweeps that are there are kept; README.md in OUT is written anew from the rows of all experiments that are there. The
models are those of results/stories260k_length, results/e2e_t5 and results/hh_rlhf, made by the commands there, and a
chat model; --help tells the options.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.process import endings
from dera_jax.common.files import write_bytes
from dera_jax.common.folders import find_data
from scripts.guided_search.experiments import EXPERIMENTS, Models
from scripts.guided_search.page import write_page
from scripts.guided_search.runs import run_experiment


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiments that are asked for, and writes the page."""
    parser = ArgumentParser(
        prog="python -m scripts.guided_search",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="(default: none, the page alone)"
    )
    for name, what in Models.OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="MODEL", help=what)
    parser.add_argument("--work", type=Path, default=Path("runs/guided_search"), help="(default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/guided_search"), help="(default %(default)s)"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.experiments if name not in EXPERIMENTS]:
        raise ValueError(f"unknown experiment {unknown[0]!r}; known: {', '.join(EXPERIMENTS)}")
    models = Models(find_data("stories260K"), {name: getattr(args, name) for name in Models.OPTIONS})
    for name in args.experiments:
        run_experiment(EXPERIMENTS[name](models), args.work, args.out)
    write_bytes(args.out / "README.md", write_page(args.out).encode())
    print(args.out / "README.md")


if __name__ == "__main__":
    sys.exit(main())
