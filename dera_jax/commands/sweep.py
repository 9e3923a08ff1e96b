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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dera_jax.commands.options import cli, decoding, devices, drawing, models
from dera_jax.commands.parts.sweep_plan import load_plan, prompts_of
from dera_jax.commands.parts.sweep_progress import run_with_progress
from dera_jax.commands.parts.sweep_report import folder_name, report, tell_plan
from dera_jax.commands.process import endings, interrupts
from dera_jax.common.checks import check_count, check_number
from dera_jax.common.shown import shown
from dera_jax.common.user_code import UserCodeError


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.sweep`."""
    parser = cli.Parser("sweep", __doc__)
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0:2:0.2",
        metavar="STRENGTHS",
        help="a list 0,0.5,1 (1/6 is fine) or a range start:stop:step, 0:2:0.2; for two aligned models 0.5+0.5 or "
        "the grid 0:1:0.5x0:1:0.5; prompt: the strength in each prompt's field `lambda` (default %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split], tfds:name[:split], toy or chat "
        "(default: toy with the toy pair, else chat)",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD[,REWARD…]",
        help=f"{cli.REWARDS} (default: none; for the toy pair length:16:24)",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        default=64,
        metavar="N",
        help="use the first N prompts (default %(default)s)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="completions of each prompt at each strength (default %(default)s)",
    )
    parser.add_argument(
        "--beta",
        type=float,
        metavar="B",
        help="KL strength that the aligned model was trained with, to show β/λ (default: as in its manifest)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default runs/<reference>-<aligned>-<hash>)"
    )
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
    decoding.add_decode_options(parser)
    drawing.add_draw_option(parser)
    drawing.add_exact_options(parser)
    drawing.add_trace_option(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.sweep`."""
    args = _arguments(argv)
    decode = decoding.decode_config(args)
    check_count("--num-prompts", args.num_prompts)
    check_count("--num-samples", args.num_samples)
    if args.beta is not None:
        check_number("--beta", args.beta, 0.0, float("inf"))
        if args.beta == 0:
            raise ValueError("--beta: expected a number above 0, got 0: no model is trained without")
    decoding.parse_rows(args.rows, 1)
    if args.out:
        cli.check_folder(args.out)
        devices.check_free(args, [args.out])

    plan = load_plan(args, decode)
    from dera_jax.devices.processes import leads

    out = args.out or Path("runs") / folder_name(plan)
    if args.dry_run:
        told = tell_plan(plan, out)
        if leads():
            print(told)
        return
    from dera_jax.sweeps.estimate import check_memory
    from dera_jax.sweeps.run import open_run

    check_memory(plan)
    kept = f"finished completions are in {shown(out, 200)}; rerun to resume"
    with (
        _mendable(out),
        interrupts.telling(kept),
        open_run(plan, out, cli.command_line("eval.sweep", argv), cli.warn) as folder,
    ):
        seconds, usage = run_with_progress(plan, folder)
        more = {"decode_seconds": round(seconds, 1)} if seconds else None
        folder.finish(folder.manifest["extent"] | {"prompts": prompts_of(args)}, more)
        rows, used = folder.rows, folder.manifest.get("resources") if usage.slot_steps else None
    if leads():
        report(out, rows, seconds, used)


@contextmanager
def _mendable(out: Path) -> Iterator[None]:
    """Adds to a failure of the user's own reward which completions are kept."""
    try:
        yield
    except UserCodeError as error:
        from dera_jax.search.scores import ScoreError

        kept = f"{out} keeps all completions; once the reward is mended, the same command goes on"
        if isinstance(error, ScoreError):
            kept = f"completions that have ended are in {out}; a changed score is another draw, for another --out"
        raise ValueError(f"{error}; {kept}") from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments: of the command line, else of --config, else of --preset, else the defaults."""
    parser = make_parser()
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
