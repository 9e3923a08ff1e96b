"""What is added to rows later, those a sweep has just made and those on disk: rewards, β."""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from dera_jax.common.provenance import provenance
from dera_jax.common.shown import shown
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import read_manifest
from dera_jax.results.rows import WHOLE
from dera_jax.rewards.of_rows import Decode, Tell, judge
from dera_jax.rewards.registry import KNOWN, Reward
from dera_jax.strengths import format_strength, strength_from_json
from dera_jax.sweeps.reward_hashes import forget_outdated, record

BY_NAME = ("length", "keywords", "slots")
"""Rewards that their names alone decide; others read a file or a model, ask a server, or are somebody's code."""


def remembered(rows: Sequence[dict], rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """Returns the rewards of `rows` that new ones can have unasked: those that their names alone decide.

    What a folder names is no reason to read a file or to run code: `reports` tells which command does.

    Args:
      rewards: that are asked for.
    """
    names = dict.fromkeys(name for row in rows for name in row["rewards"])
    asked = {reward.name for reward in rewards}
    found = []
    for name in names:
        kind, _, argument = name.partition(":")
        if kind in BY_NAME and name not in asked:
            try:
                found.append(Reward(name, KNOWN[kind][0](argument, name)))
            except ValueError:  # a name that only looks like one
                continue
    return tuple(found)


def extent(rows: Sequence[dict]) -> dict:
    """Returns what of a sweep's extent is there: it may grow from run to run."""
    strengths = {strength_from_json(row["lambda"]) for row in rows}
    return {
        "num_prompts": len({row["prompt_id"] for row in rows}),
        "num_samples": max((row["sample"] + 1 for row in rows), default=0),
        "lambda": [format_strength(strength) for strength in sorted(strengths)],
        "rewards": list(dict.fromkeys(name for row in rows for name in row["rewards"])),
    }


def add_beta(beta: float | None, rows: list[dict]) -> bool:
    """Adds the KL strength to rows that lack it; returns whether there was any.

    Raises:
      ValueError: rows that have another.
    """
    other = next((row["beta"] for row in rows if row["beta"] not in (None, beta)), None)
    if other is not None:
        there = f"{other:g}" if isinstance(other, (int, float)) else other
        raise ValueError(f"the rows there have beta {there}, here it is {beta}; choose another --out")
    lacking = [row for row in rows if row["beta"] != beta]
    for row in lacking:
        row["beta"] = beta
    return bool(lacking)


def judge_run(
    run: Path,
    rewards: Sequence[Reward],
    columns: dict,
    command: Sequence[str],
    more: dict | None = None,
    tell_changed: Tell = warnings.warn,
) -> bool:
    """Adds rewards to the rows of a run's folder; returns whether any was missing.

    Args:
      columns: the prompts' other fields, by prompt_id.
      command: for the manifest.
      more: further keys of the manifest.
      tell_changed: is told of rewards that have changed since they judged the rows.

    Raises:
      ValueError: no run, another command is writing to it, or a reward fails; the rows stay as they are.
    """
    if not run.is_dir():
        raise ValueError(f"{shown(run, 200)}: no such folder")
    manifest = read_manifest(run)
    with RunFolder(run, manifest["identity"], provenance(list(command)), WHOLE) as folder:
        if not folder.rows:
            raise ValueError(f"{shown(run, 200)}: no rows yet")
        for line in forget_outdated(folder, rewards):
            tell_changed(line)
        for reward in rewards:
            reward.check([row["prompt"] for row in folder.rows if reward.name not in row["rewards"]])
        added = judge(folder.rows, rewards, columns, decoder(manifest))
        if added:
            folder.replace_rows(folder.rows)
        record(folder, rewards)
        # Also where a killed command has added them and could not say so.
        folder.finish(folder.manifest.get("extent", {}) | extent(folder.rows), more)
    return added


def decoder(manifest: dict) -> Decode:
    """Returns the aligned model's decoding; its tokenizer is looked for when a reward asks for text."""
    from dera_jax.policies.hub import resolve
    from dera_jax.policies.tokenizers import load_tokenizer

    @cache
    def tokenizer():
        models = manifest.get("provenance", {}).get("models")
        if not models:
            raise ValueError("the reward needs the tokenizer, and the run's manifest names no models")
        return load_tokenizer(resolve(models[-1]["name"]))

    return lambda tokens: tokenizer().decode(tokens, skip_special_tokens=True)
