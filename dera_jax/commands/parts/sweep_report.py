"""What a sweep says: before it begins, and when it has ended."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, models
from dera_jax.common.shown import shown


def _speed(summaries: Sequence, seconds: float) -> str:
    """Returns the line that tells how fast all strengths together were decoded."""
    tokens = sum(summary.tokens for summary in summaries)
    return f"speed: {tokens / seconds:.0f} tokens/s, all strengths together"


def _used(resources: dict) -> str:
    """Returns the line that tells how full the batches were, and the memory at its peak."""
    memory = [
        f"{place} {models.format_bytes(resources[key])}"
        for place in ("host", "device")
        if (key := f"peak_{place}_bytes") in resources
    ]
    shared = resources.get("shared_tokens", 0)
    told = f"{shared:.0%} of the tokens were decoded once for several strengths; " if shared else ""
    if "drafts_accepted" in resources:
        told += f"{resources['drafts_accepted']:.0%} of the draft tokens accepted; "
    if "prompt_tokens_cached" in resources:
        cached = resources["prompt_tokens_cached"]
        share = cached / (cached + resources["prompt_tokens_read"])
        told += f"{share:.0%} of the prompt tokens came from the prefix cache; "
    return (
        f"{told}batch {resources['slot_utilization']:.0%} full (rows that drew a token, mean over all steps); "
        f"peak memory: {', '.join(memory)}"
    )


def report(out: Path, rows: list[dict], seconds: float, used: dict | None) -> None:
    """Writes summary and figure of all rows, and prints the table and where the files are.

    Args:
      used: `resources`, if anything was decoded.
    """
    from dera_jax.analysis import plots, reports, tables
    from dera_jax.analysis.best_of import tell_search
    from dera_jax.analysis.exact import tell_exact
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
    for told in (tell_search(rows), tell_exact(rows)):
        if told:
            print(told)
    if seconds:
        print(_speed(summaries, seconds))
    if used:
        print(_used(used))
    print(f"{shown(out)}/: rows.jsonl ({len(rows)} rows), manifest.json, summary.csv, sweep.png")


def folder_name(plan) -> str:
    """Returns a name that another identity, or other prompts, do not have; the same as ever."""
    from dera_jax.data.prompts import prompt_text
    from dera_jax.results.manifests import LATER

    reference, *aligned = (Path(policy.name).resolve().name for policy in plan.policies)
    # The first prompt stands for all, whose number may grow.
    first = plan.encoded[0].prompt
    told = {name: value for name, value in plan.identity.items() if name not in LATER}
    told = json.dumps([told, first.prompt_id, prompt_text(first)])
    return f"{reference}-{'+'.join(aligned)}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def tell_plan(plan, out: Path) -> str:
    """Returns what a plan would decode, and its memory and its time."""
    from dera_jax.decoding.complete import tries_of
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
    tokens = math.ceil(missing * tries_of(plan.draw)) * plan.decode.max_new_tokens
    turns = plan.num_rows / len(plan.conversations)
    return (
        f"{plan.num_rows} completions: {len(plan.prompts)} prompts × {plan.num_samples} samples × "
        f"{len(plan.lambdas or [1])} strengths{f' × {turns:.3g} turns' if turns > 1 else ''}, "
        f"{plan.rows} rows at a time{found}\n"
        f"memory: {sum(memory.values()) / 2**20:.1f} MiB ({parts})\n"
        f"time: about {estimate_seconds(plan, missing):.0f} s of decoding if no completion ends early "
        f"({tokens} tokens); loading and compiling come on top\n"
        f"folder: {shown(out)}"
    )
