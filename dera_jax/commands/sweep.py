"""Decodes prompts at many strengths and shows what the strength does.

  python -m eval.sweep --lambda=0:2:0.2
  python -m eval.sweep --reference=DIR --aligned=DIR --lambda=0,1/2,1 --prompts=FILE.jsonl --reward=length:40:60

Larger λ means smaller β/λ: weaker regularization. λ = 0 is the reference, 1 the aligned model, more
extrapolates, less than 0 moves away from the aligned model. Rerunning a command completes its folder.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands import cli
from dera_jax.configs import check_count, check_number


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.sweep`."""
    parser = cli.Parser(__doc__, prog="python -m eval.sweep")
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0:2:0.2",
        metavar="STRENGTHS",
        help="0,0.5,1 or 0:2:0.2 or 1/6; 0.5+0.5 for two aligned models; prompt: each prompt's own (default %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="FILE.jsonl|.parquet|.txt, hf:org/set[:split], tfds:name[:split], toy or chat (default: toy with the toy pair, else chat)",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD[,REWARD…]",
        help="length:MIN:MAX[:STOP], lexicon:FILE, keywords:a|b, python:module:function (default: none; the toy pair has its own)",
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
        help="KL strength the aligned model was trained with (default: what its manifest says)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default runs/<reference>-<aligned>-<hash>)"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with option names as keys; options on the command line win"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be decoded, its memory and time, and stop"
    )
    cli.add_model_options(parser)
    cli.add_decode_options(parser)
    return parser


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.sweep`."""
    args = cli.apply_config_file(make_parser(), argv)
    decode = cli.decode_config(args)
    check_count("--num-prompts", args.num_prompts)
    check_count("--num-samples", args.num_samples)
    if args.beta is not None:
        check_number("--beta", args.beta, 0.0, float("inf"))
    cli.parse_rows(args.rows, 1)

    plan = _plan(args, decode)
    if args.dry_run:
        print(_dry_run(plan))
        return
    out = args.out or Path("runs") / _folder_name(plan)
    from dera_jax.results import RunFolder, provenance

    facts = provenance(
        [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)],
        device=cli.announce_devices(),
        models=[{"name": p.name, "fingerprint": p.fingerprint} for p in plan.policies],
    )
    with RunFolder(out, plan.identity, facts) as folder:
        rows, seconds = _run_with_progress(plan, folder)
        folder.finish(_extent(args, plan), {"decode_seconds": round(seconds, 1)} if seconds else None)
    _report(plan, out, rows, seconds)


def _plan(args, decode):
    """Returns the sweep that the arguments ask for, its models loaded."""
    from dera_jax.data import load_prompts
    from dera_jax.generate import encode_prompts
    from dera_jax.policies import load_policies
    from dera_jax.rewards import parse_rewards
    from dera_jax.strengths import PER_PROMPT, parse_strengths
    from dera_jax.sweep import Sweep

    toy = args.reference is None and args.aligned is None
    aligned = args.aligned.split(",") if args.aligned else None
    # Everything that can be wrong without a model is checked before one is loaded.
    lambdas = None if args.lambda_ == PER_PROMPT else parse_strengths(args.lambda_, len(aligned or [1]))
    reward = args.reward or (cli.toy_reward() if toy else None)
    rewards = parse_rewards(reward) if reward else ()
    spec = args.prompts or ("toy" if toy else "chat")
    prompts = load_prompts(spec, args.num_prompts)
    rule, rule_name = cli.load_rule(args.rule)
    policies = load_policies(args.reference, aligned, args.dtype)
    encoded = tuple(encode_prompts(policies, prompts, decode.max_new_tokens))
    return Sweep(
        policies=policies,
        prompts=encoded,
        lambdas=lambdas,
        rewards=rewards,
        decode=decode,
        num_samples=args.num_samples,
        rows=cli.parse_rows(args.rows, len(prompts) * args.num_samples * len(lambdas or [1])),
        rule=rule,
        rule_name=rule_name,
        beta=policies[-1].beta if args.beta is None else args.beta,
    )


def _run_with_progress(plan, folder) -> tuple[list[dict], float]:
    """Returns all rows of the plan, and the seconds that the new ones took, compilation apart."""
    from dera_jax.generate import warm_up
    from dera_jax.sweep import cell_key, run_sweep

    missing = [cell for cell in plan.cells if cell_key(cell) not in folder.keys]
    shapes = {cell.prompt.buckets: cell for cell in missing}
    compiling = sum(warm_up(plan.policies, c, plan.decode, plan.rows, plan.rule)[0] for c in shapes.values())
    if missing:
        print(f"compiled in {compiling:.1f} s", file=sys.stderr)
    start = time.perf_counter()
    rows = []
    with (
        tqdm(total=len(plan.cells), unit="completion", dynamic_ncols=True) as bar,
        closing(run_sweep(plan, folder)) as found,
    ):
        for row in found:
            rows.append(row)
            bar.update()
    return rows, time.perf_counter() - start if len(missing) == len(rows) else 0.0


def _extent(args, plan) -> dict:
    from dera_jax.strengths import format_strength

    return {
        "prompts": args.prompts or "default",
        "num_prompts": len(plan.prompts),
        "num_samples": plan.num_samples,
        "lambda": "prompt" if plan.lambdas is None else [format_strength(s) for s in plan.lambdas],
        "rewards": [reward.name for reward in plan.rewards],
        "rows": plan.rows,
        "beta": plan.beta,
    }


def _report(plan, out: Path, rows: list[dict], seconds: float) -> None:
    """Writes summary and figure, and prints the table and where the files are."""
    from dera_jax import metrics, plots, tables

    summaries = metrics.summarize(rows)
    metrics.write_summary_csv(out / "summary.csv", summaries)
    plots.plot_sweep({out.name: summaries}, out / "sweep.png")
    speed = {s.lambda_: s.tokens / seconds for s in summaries} if seconds else None
    print(tables.format_table(summaries, speed=speed))
    for warning in metrics.warnings_of(summaries):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{out}/: rows.jsonl ({len(rows)} rows), manifest.json, summary.csv, sweep.png")


def _folder_name(plan) -> str:
    short = ["-".join(Path(p.name).resolve().parts[-1:]) for p in plan.policies]
    digest = hashlib.sha256(
        json.dumps([plan.identity, [p.id for p in plan.prompts[:1]]], default=str).encode()
    )
    return f"{short[0]}-{'+'.join(short[1:])}-{digest.hexdigest()[:8]}"


def _dry_run(plan) -> str:
    from dera_jax.sweep import estimate_seconds, memory_bytes

    memory = memory_bytes(plan)
    parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items())
    cells = plan.cells
    longest = len(cells) * plan.decode.max_new_tokens
    return (
        f"{len(cells)} completions: {len(plan.prompts)} prompts × {plan.num_samples} samples × "
        f"{len(plan.lambdas or [1])} strengths, {plan.rows} rows at a time\n"
        f"memory: {sum(memory.values()) / 2**20:.1f} MiB ({parts})\n"
        f"time: at most {estimate_seconds(plan):.0f} s on {cli.announce_devices()}, if all {longest} tokens are drawn"
    )
