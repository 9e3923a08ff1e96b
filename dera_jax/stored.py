"""Rewards of rows: those a sweep has just made, and those of a run on disk."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from dera_jax.results import RunFolder, provenance, read_manifest
from dera_jax.rewards import Completions, Reward

Decode = Callable[[Sequence[int]], str]


def judge(rows: list[dict], rewards: Sequence[Reward], columns: dict, decode: Decode) -> bool:
    """Adds each reward to those `rows` that lack it; returns whether there was any.

    Args:
      columns: the prompts' other fields, by prompt_id.
      decode: token ids to text.
    """
    added = False
    for reward in rewards:
        lacking = [row for row in rows if reward.name not in row["rewards"]]
        if not lacking:
            continue
        names = sorted({name for row in lacking for name in columns.get(row["prompt_id"], {})})
        values = reward(
            Completions(
                prompts=[row["prompt"] for row in lacking],
                completions=[row["completion"] for row in lacking],
                tokens=[row["tokens"][: row["length"]] for row in lacking],
                finish_reasons=[row["finish_reason"] for row in lacking],
                columns={n: [columns.get(row["prompt_id"], {}).get(n) for row in lacking] for n in names},
                decode=decode,
            )
        )
        for row, value in zip(lacking, values, strict=True):
            row["rewards"][reward.name] = value
        added = True
    return added


def judge_run(run: Path, rewards: Sequence[Reward], columns: dict, command: Sequence[str]) -> bool:
    """Adds rewards to the rows of a run's folder; returns whether any was missing.

    Args:
      columns: the prompts' other fields, by prompt_id.
      command: for the manifest.

    Raises:
      ValueError: no run, another command is writing to it, or a reward fails; the rows stay as they are.
    """
    manifest = read_manifest(run)
    with RunFolder(run, manifest["identity"], provenance(list(command))) as folder:
        added = judge(folder.rows, rewards, columns, _decoder(manifest))
        if added:
            folder.replace_rows(folder.rows)
            names = dict.fromkeys(name for row in folder.rows for name in row["rewards"])
            folder.finish(folder.manifest.get("extent", {}) | {"rewards": list(names)})
    return added


def _decoder(manifest: dict) -> Decode:
    """Returns the aligned model's decoding; its tokenizer is looked for when a reward asks for text."""
    from dera_jax.loading.hub import resolve
    from dera_jax.tokenizer import load_tokenizer

    @cache
    def tokenizer():
        models = manifest.get("provenance", {}).get("models")
        if not models:
            raise ValueError("the reward needs the tokenizer, and the run's manifest names no models")
        return load_tokenizer(resolve(models[-1]["name"]))

    return lambda tokens: tokenizer().decode(tokens, skip_special_tokens=True)
