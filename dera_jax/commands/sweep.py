"""Decodes prompts at many strengths and shows what the strength does.

  python -m eval.sweep --lambda=0:2:0.2
  python -m eval.sweep --reference=DIR --aligned=DIR --lambda=0,1/2,1 --prompts=FILE.jsonl

Larger λ means smaller β/λ: weaker regularization. λ = 0 is the reference and λ = 1 the aligned
model; λ > 1 extrapolates, and λ < 0 moves away from the aligned model. Rerun a command to complete
its folder; more strengths, samples, prompts or rewards are added to it.

Several processes can divide the work: start the same command in each, with --coordinator,
--num-processes and --process-id, or as scripts/tpu_pod.sh and scripts/slurm.sh do. All of them must
see the folder --out. Each writes rows-<process>.jsonl; these files become rows.jsonl at the end. If
a process is killed, a rerun with any number of processes keeps its rows and makes the rest.
--rows=N counts the rows of all processes together.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, dials, drawing, models, sweeping
from dera_jax.commands.parts import dial_sweep
from dera_jax.commands.parts.sweep_plan import load_plan, prompts_of
from dera_jax.commands.parts.sweep_progress import run_plan
from dera_jax.commands.parts.sweep_report import folder_name, report, tell_plan
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.sweep`."""
    parser = cli.Parser("sweep", __doc__)
    sweeping.add_sweep_options(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="settings of an experiment of the paper, such as zephyr-7b; other options win",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with option names as keys; options on the command line win"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be decoded, the memory and the time, and stop",
    )
    models.add_model_options(parser)
    dials.add_weight_options(parser)
    decoding.add_decode_options(parser)
    drawing.add_draw_option(parser)
    drawing.add_exact_options(parser)
    drawing.add_trace_option(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.sweep`."""
    parser = make_parser()
    args = _arguments(parser, argv)
    decode = decoding.decode_config(args)
    dial = dials.take_weights(args, parser)
    sweeping.check(args)
    values = dials.values_of(args, dial) if dial else ()

    plan = load_plan(args, decode)
    from dera_jax.devices.processes import leads

    out = args.out or Path("runs") / folder_name(plan)
    if values:
        out = args.out or out.with_name(f"{out.name}-{dial.name}")
        dial_sweep.check_folder(out)
    if args.dry_run:
        told = dial_sweep.tell_values(plan, values, out) if values else tell_plan(plan, out)
        if leads():
            print(told)
        return
    words = dials.plain_words(sys.argv[1:] if argv is None else argv, args, parser)
    if values:
        dial_sweep.run_values(plan, values, out, prompts_of(args), words)
        return
    rows, seconds, used = run_plan(plan, out, prompts_of(args), cli.command_line("eval.sweep", words))
    if leads():
        report(out, rows, seconds, used)


def _arguments(parser: cli.Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments: of the command line, else of --config, else of --preset, else the defaults."""
    args = cli.apply_config_file(parser, argv)
    if args.preset is None:
        return args
    from dera_jax.experiments.presets import sweep_defaults

    parser.set_defaults(**sweep_defaults(args.preset))
    args = cli.apply_config_file(parser, argv)
    if missing := [name for name in ("reference", "aligned", "prompts") if getattr(args, name) is None]:
        raise ValueError(
            f"--preset={args.preset}: expected {', '.join(map(cli.option, missing))}, which it makes itself: "
            f"bash scripts/reproduce.sh --preset={args.preset} in the repository"
        )
    return args
