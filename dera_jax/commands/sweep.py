"""Decodes prompts at many strengths and shows what the strength does.

  python -m eval.sweep --lambda=0:2:0.2
  python -m eval.sweep --reference=DIR --aligned=DIR --lambda=0,1/2,1 --prompts=FILE.jsonl

Larger λ means smaller β/λ: weaker regularization. λ = 0 is the reference, 1 the aligned model, more
extrapolates, less than 0 moves away from the aligned model. Rerunning a command completes its
folder; more strengths, samples, prompts or rewards add to it.

Several processes divide the work: start the same command in each, with --coordinator and its two
companions, or as scripts/tpu_pod.sh and scripts/slurm.sh do. All of them must see the folder --out.
Each writes rows-<process>.jsonl, which become rows.jsonl at the end; if one is killed, a rerun with
any number of processes keeps its rows and makes the rest. --rows=N is of all of them together.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands.options import cli, decoding, devices, models
from dera_jax.commands.process import endings, interrupts
from dera_jax.common.checks import check_count, check_number
from dera_jax.common.shown import shown
from dera_jax.common.user_code import UserCodeError
from dera_jax.rules.known import load_rule


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.sweep`."""
    parser = cli.Parser("sweep", __doc__)
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0:2:0.2",
        metavar="STRENGTHS",
        help="0,0.5,1 or 1/6 or 0:2:0.2, up to 2 where a step meets it; for two aligned models 0.5+0.5 or the grid "
        "0:1:0.5x0:1:0.5; "
        "prompt: each prompt's own (default %(default)s)",
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
        help=f"{cli.REWARDS} (default: none; the toy pair has its own)",
    )
    parser.add_argument(
        "--num-prompts", type=int, default=64, metavar="N", help="the first N prompts (default %(default)s)"
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
        help="KL strength the aligned model was trained with (default: what its manifest says)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default runs/<reference>-<aligned>-<hash>)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="decode as an experiment of the paper does, zephyr-7b for instance; other options win",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with option names as keys; options on the command line win"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be decoded, its memory and time, and stop"
    )
    models.add_model_options(parser)
    decoding.add_decode_options(parser)
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

    plan = _plan(args, decode)
    from dera_jax.devices.processes import leads

    out = args.out or Path("runs") / _folder_name(plan)
    if args.dry_run:
        told = _dry_run(plan, out)
        if leads():
            print(told)
        return
    from dera_jax.sweeps.estimate import check_memory
    from dera_jax.sweeps.run import open_run

    check_memory(plan)
    kept = f"{shown(out, 200)} keeps what has ended; the same command goes on from there"
    with (
        _mendable(out),
        interrupts.telling(kept),
        open_run(plan, out, cli.command_line("eval.sweep", argv), cli.warn) as folder,
    ):
        seconds, usage = _run_with_progress(plan, folder)
        more = {"decode_seconds": round(seconds, 1)} if seconds else None
        folder.finish(folder.manifest["extent"] | {"prompts": _prompts(args)}, more)
        rows, used = folder.rows, folder.manifest.get("resources") if usage.slot_steps else None
    if leads():
        _report(out, rows, seconds, used)


@contextmanager
def _mendable(out: Path) -> Iterator[None]:
    """Adds to a failure of the user's own reward that no completion is lost."""
    try:
        yield
    except UserCodeError as error:
        kept = f"{out} keeps all completions; once the reward is mended, the same command goes on"
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


def _plan(args, decode):
    """Returns the sweep that the arguments ask for, its models loaded."""
    from dera_jax.data.encoding import encode_usable
    from dera_jax.data.prompts import read_prompts
    from dera_jax.devices.mesh import own_group
    from dera_jax.devices.processes import leads, several, together
    from dera_jax.rewards.registry import parse_rewards
    from dera_jax.strengths import PER_PROMPT, parse_strengths
    from dera_jax.sweeps.plan import Sweep, check_extent, check_rewards
    from dera_jax.sweeps.run import known_beta

    reference, aligned = models.model_names(args)
    # Everything that can be wrong without a model is checked before one is loaded.
    lambdas = None if args.lambda_ == PER_PROMPT else parse_strengths(args.lambda_, len(aligned or [1]))
    reward = args.reward or (cli.toy_reward() if reference is None else None)
    rewards = parse_rewards(reward) if reward else ()
    prompts, unread = read_prompts(_prompts(args), args.num_prompts)
    check_rewards(rewards, prompts)
    check_extent(len(prompts), args.num_samples, len(lambdas or [0]))
    rule, rule_name = load_rule(args.rule)
    mesh = models.open_mesh(args)

    def load() -> Sweep:
        cli.announce_devices()
        group = own_group(mesh) if mesh else None
        policies = models.load_models(args, mesh=group and group.mesh)
        _check_default_prompts(args, policies)
        fitting, encoded, unfit = encode_usable(policies, prompts, decode.max_new_tokens)
        if (dropped := unread | unfit).count and leads():
            print(dropped.told(_prompts(args), len(fitting)), file=sys.stderr)
        return Sweep(
            policies=policies,
            prompts=tuple(fitting),
            encoded=tuple(encoded),
            lambdas=lambdas,
            rewards=rewards,
            decode=decode,
            num_samples=args.num_samples,
            rows=_rows(args, len(fitting) * args.num_samples * len(lambdas or [1]), group),
            rule=rule,
            rule_name=rule_name,
            beta=known_beta(policies) if args.beta is None else args.beta,
            group=group if several() else None,
        )

    return together(load)


def _check_default_prompts(args, policies) -> None:
    """Raises ValueError where no prompts are given and the models cannot read those that stand in."""
    if args.prompts is None and args.reference is not None and not any(
        policy.template is not None or policy.tokenizer.chat_template for policy in policies
    ):  # fmt: skip
        raise ValueError(
            "without --prompts, chats are asked, and neither model has a chat template: expected "
            "--prompts=FILE, or --chat-template=FILE"
        )


def _rows(args, cells: int, group) -> int:
    """Returns the rows of a batch of one group: of those asked for, which all have together, its part."""
    groups = group.count if group else 1
    rows = decoding.parse_rows(args.rows, -(-cells // groups))
    return rows if args.rows == "auto" else -(-rows // groups)


def _prompts(args) -> str:
    return args.prompts or ("toy" if args.reference is None else "chat")


def _run_with_progress(plan, folder) -> tuple:
    """Adds what is missing; returns the seconds of decoding, or 0 if rows were there, and the slots' use.

    What the compiler and the rewards take is left out. Of several processes one tells of its own cells.
    """
    from dera_jax.decoding.complete import warm_up
    from dera_jax.devices.processes import leads
    from dera_jax.devices.stopwatch import Stopwatch
    from dera_jax.devices.usage import Usage
    from dera_jax.sweeps.plan import own_conversations, plan_keys, turn_keys
    from dera_jax.sweeps.run import run_sweep

    before, wanted = len(folder.rows), plan_keys(plan)
    watch, usage = Stopwatch(), Usage()
    own = own_conversations(plan, folder.keys)
    missing = {key for conversation in own for key in turn_keys(conversation)} - folder.keys
    if missing:
        if leads():
            print("compiling", file=sys.stderr)
        # Later turns and longer caches compile when their turn comes.
        cells = _first_cells(plan, own, folder.keys)
        compiling, _ = warm_up(plan.policies, cells, plan.decode, plan.rows, plan.rule)
        if leads():
            print(f"compiled in {max(0.0, compiling):.1f} s", file=sys.stderr)
    there = len(wanted & folder.keys)
    with (
        interrupts.raised(),  # completions that wait to be written are not lost
        _bar(there, len(missing)) as bar,
        closing(run_sweep(plan, folder, watch, usage, bar.set_postfix_str)) as found,
    ):
        for number, _ in enumerate(found):
            bar.update(number >= there)
    if (left := len(wanted - folder.keys)) and leads():
        cli.warn(f"{left} later turns did not fit the models' context and are not there")
    return (0.0 if before else watch.seconds), usage


def _speed(summaries: Sequence, seconds: float) -> str:
    """Returns the line that tells how fast all strengths together were decoded."""
    tokens = sum(summary.tokens for summary in summaries)
    return f"speed: {tokens / seconds:.0f} tokens/s, all strengths together"


def _bar(there: int, missing: int):
    """Returns the progress of completions; those there before say nothing of the speed."""
    from dera_jax.devices.processes import leads

    return tqdm(
        total=there + missing, initial=there, unit="completion", dynamic_ncols=True, disable=not leads()
    )


def _used(resources: dict) -> str:
    """Returns the line that tells how full the batches were, and the memory at its peak."""
    memory = [
        f"{place} {models.format_bytes(resources[key])}"
        for place in ("host", "device")
        if (key := f"peak_{place}_bytes") in resources
    ]
    return (
        f"slots busy {resources['slot_utilization']:.0%} (steps of all --rows that drew a token); "
        f"peak memory: {', '.join(memory)}"
    )


def _first_cells(plan, conversations, there) -> list:
    """Returns the longest first turn that is not there yet of each shape that they have."""
    from dera_jax.sweeps.plan import turn_key

    missing = [c for c in conversations if turn_key(c, 0) not in there]
    longest = {c.first.buckets: c for c in sorted(missing, key=lambda c: max(c.first.slots))}
    return [c.cell(plan.policies, (), plan.decode.max_new_tokens) for c in longest.values()]


def _report(out: Path, rows: list[dict], seconds: float, used: dict | None) -> None:
    """Writes summary and figure of all rows, and prints the table and where the files are.

    Args:
      used: `resources`, if anything was decoded.
    """
    from dera_jax.analysis import plots, reports, tables
    from dera_jax.analysis.summaries import summarize
    from dera_jax.results.asked import tell_missing

    summaries = summarize(rows)
    reports.write_summary_csv(out / "summary.csv", summaries)
    plots.plot_sweep({out.name: summaries}, out / "sweep.png", reports.describe_models(out))
    print(tables.format_table(summaries))
    for warning in reports.warnings_of(summaries, out):
        cli.warn(warning)
    if told := tell_missing(out, rows):
        cli.warn(f"{told}; rerun the command that asked for them")
    if seconds:
        print(_speed(summaries, seconds))
    if used:
        print(_used(used))
    print(f"{shown(out)}/: rows.jsonl ({len(rows)} rows), manifest.json, summary.csv, sweep.png")


def _folder_name(plan) -> str:
    """Returns a name that another identity, or other prompts, do not have; the same as ever."""
    from dera_jax.data.prompts import prompt_text
    from dera_jax.results.manifests import LATER

    reference, *aligned = (Path(policy.name).resolve().name for policy in plan.policies)
    # The first prompt stands for all, whose number may grow.
    first = plan.encoded[0].prompt
    told = {name: value for name, value in plan.identity.items() if name not in LATER}
    told = json.dumps([told, first.prompt_id, prompt_text(first)])
    return f"{reference}-{'+'.join(aligned)}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _dry_run(plan, out: Path) -> str:
    from dera_jax.results.reading import read_rows
    from dera_jax.results.rows import row_key
    from dera_jax.sweeps.estimate import estimate_seconds, memory_bytes
    from dera_jax.sweeps.plan import plan_keys

    memory = memory_bytes(plan)
    parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items())
    there = set(map(row_key, read_rows(out))) if (out / "rows.jsonl").exists() else set()
    wanted = plan_keys(plan)
    missing = len(wanted - there)
    found = f", {len(wanted) - missing} of them there already" if there else ""
    turns = plan.num_rows / len(plan.conversations)
    return (
        f"{plan.num_rows} completions: {len(plan.prompts)} prompts × {plan.num_samples} samples × "
        f"{len(plan.lambdas or [1])} strengths{f' × {turns:g} turns' if turns > 1 else ''}, "
        f"{plan.rows} rows at a time{found}\n"
        f"memory: {sum(memory.values()) / 2**20:.1f} MiB ({parts})\n"
        f"time: at most {estimate_seconds(plan, missing):.0f} s, "
        f"if all {missing * plan.decode.max_new_tokens} tokens are drawn\n"
        f"folder: {shown(out)}"
    )
