"""Runs lm-evaluation-harness on a realigned pair, at any strengths.

  python -m eval.lm_eval --reference=SFT --aligned=DPO --lambda=0:2:0.5 --tasks=arc_easy,winogrande
  python -m eval.lm_eval --reference=SFT --aligned=DPO --lambda=0,1 --tasks=openllm -o results

Log-likelihoods of all strengths are read in one pass of each model; texts are generated at each.
λ = 0 and λ = 1 give the numbers of lm-eval's own model `hf` for the reference and the aligned one.
lm-eval's options keep their names. Files go to a folder for each strength, OUTPUT_PATH/lambda_0.5.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_count

INSTALL = "pip install lm-eval==0.4.13"
NOT_HERE = {
    "help", "config", "model", "model_args", "batch_size", "max_batch_size", "device", "verbosity",
    "wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args", "trust_remote_code",
}  # fmt: skip
"""lm-eval's options that have another name here, or no use."""


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.lm_eval`."""
    words = sys.argv[1:] if argv is None else argv
    installed = find_spec("lm_eval") is not None
    if not installed and not {"-h", "--help"} & set(words):
        raise ValueError(f"lm-evaluation-harness is not installed: {INSTALL}")
    # Its workers would be forks of a process in which JAX has threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    parser = make_parser()
    if installed:
        add_harness_options(parser)
    args = parser.parse_args(argv)
    if not args.tasks or not all(args.tasks):
        raise ValueError("expected --tasks=TASK[,TASK…]; `lm-eval ls tasks` lists them")
    for side in ("reference", "aligned"):
        if getattr(args, f"{side}_instruction"):
            raise ValueError(
                f"--{side}-instruction: lm-eval gives all models one text; its tasks have descriptions"
            )
    if args.reference_chat_template:
        raise ValueError(
            "--reference-chat-template: lm-eval gives all models one text; --chat-template sets it"
        )
    run(args)


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.lm_eval`, without lm-eval's own options."""
    parser = cli.Parser(
        "lm_eval",
        __doc__,
        usage="%(prog)s --reference=MODEL --aligned=MODEL --lambda=STRENGTHS --tasks=TASKS",
        epilog=None if find_spec("lm_eval") else f"lm-evaluation-harness is not installed: {INSTALL}",
    )
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0,0.5,1",
        metavar="STRENGTHS",
        help="as in eval.sweep (default %(default)s)",
    )
    parser.add_argument(
        "--rows",
        "--batch-size",
        default="auto",
        metavar="N|auto",
        help="texts read or generated at a time (default auto: 8 read, 32 generated)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a text that models read, longer ones lose their start (default: the models' context)",
    )
    parser.add_argument(
        "--bootstrap-iters",
        type=int,
        default=100_000,
        metavar="N",
        help="resamples for standard errors that have no formula; 0: no standard errors (default %(default)s)",
    )
    models.add_model_options(parser)
    return parser


def add_harness_options(parser: cli.Parser) -> None:
    """Adds the options of `lm-eval run`, with its defaults and its help."""
    try:
        from lm_eval._cli.run import Run
    except ImportError as error:
        raise ValueError(f"expected lm-eval 0.4.13 or a version like it ({error}): {INSTALL}") from error
    theirs = Run(argparse.ArgumentParser().add_subparsers())._parser
    for group in theirs._action_groups:
        actions = [action for action in group._group_actions if action.dest not in NOT_HERE]
        added = parser.add_argument_group(f"lm-eval: {group.title}") if actions else None
        for action in actions:
            # `_` and `-` are the same here.
            action.option_strings = [
                name.replace("_", "-") if name.startswith("--") else name for name in action.option_strings
            ]
            added._add_action(action)


def run(args: argparse.Namespace) -> None:
    """Evaluates and prints lm-eval's table of each strength, then one of all."""
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import handle_non_serializable, make_table, setup_logging

    from dera_jax.strengths import format_strength, parse_strengths

    setup_logging("WARNING")
    check_count("--bootstrap-iters", args.bootstrap_iters, least=0)
    rows = None if args.rows == "auto" else decoding.parse_rows(args.rows, 1)
    _, aligned = models.model_names(args)
    lambdas = parse_strengths(args.lambda_, len(aligned or [1]))
    known = {field.name for field in fields(EvaluatorConfig)}
    own = {name: value for name, value in vars(args).items() if name in known}
    settings = EvaluatorConfig.from_cli(argparse.Namespace(**own))
    if settings.output_path:
        path = Path(settings.output_path)
        (path.parent if path.suffix == ".json" else path).mkdir(parents=True, exist_ok=True)
    mesh = models.open_mesh(args)
    cli.announce_devices()

    from dera_jax.devices import processes
    from dera_jax.scoring import harness, harness_runs

    if processes.several():
        raise ValueError(
            "expected one process: lm-eval has no part for others; --mesh splits over its devices"
        )

    tasks = harness_runs.load_tasks(settings)
    policies = models.load_models(args, mesh=mesh)
    seed = (settings.seed or [None] * 3)[2] or 0
    model = harness.Realigned(policies, lambdas, rows, args.max_length, seed, args.chat_template_kwargs)
    if settings.apply_chat_template and not model.tokenizer.chat_template:
        raise ValueError("--apply-chat-template: neither model has one; --chat-template=FILE gives one")
    found = {}
    for strength, results in harness_runs.evaluate(model, settings, tasks, args.bootstrap_iters):
        found[strength] = results
        print(f"λ = {format_strength(strength)}")
        if settings.show_config:
            print(json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
        print(make_table(results))
        if "groups" in results:
            print(make_table(results, "groups"))
        sys.stdout.flush()
    if len(found) > 1:
        print(f"{harness_runs.strength_table(found)}\n\n± is the largest standard error in a line")
    if settings.output_path:
        print(settings.output_path)
