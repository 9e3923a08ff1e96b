"""The runs whose completions a curve pools, read and compared."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dera_jax.analysis.tuning.runs import differing, way
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown
from dera_jax.results.asked import check_whole
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.results.rows import WHOLE
from dera_jax.strengths import Strength, strength_from_json

PLAIN = {"temperature": (1, 1.0), "top_k": (None,), "top_p": (None, 1, 1.0)}
"""Settings at which completions are drawn from the mixture itself."""


@dataclass(frozen=True)
class Pooled:
    """The rows of runs of the same models and prompts."""

    rows: list[dict]
    manifest: dict
    """Of the first run."""

    @property
    def strengths(self) -> list[float]:
        """Those of the rows, in increasing order."""
        return sorted({strength_from_json(row["lambda"])[0] for row in self.rows})

    @property
    def beta(self) -> float | None:
        """KL strength of the aligned model, where all rows have it."""
        found = {row["beta"] for row in self.rows if not isinstance(row["beta"], list)}
        return found.pop() if len(found) == 1 else None


def read_whole(
    run: Path, allow_missing: bool, tell: Tell, strengths: Collection[Strength] | None = None
) -> list[dict]:
    """Returns the rows of a run that is all there, or of one that may lack some.

    A run that was stopped has more of the short completions: means of what is there are not those of the whole.

    Args:
      tell: hears what is missing where that is allowed.
      strengths: at which rows are looked for; None: all.

    Raises:
      ValueError: there is no run, no rows, or some are missing and that is not allowed.
    """
    name = shown(run, 200)
    if not run.exists():
        raise ValueError(f"{name}: no such run")
    if run.suffix == ".json":
        raise ValueError(f"{name}: expected a run's folder, found a file of another kind")
    rows = read_rows(run, WHOLE)
    if not rows:
        raise ValueError(f"{name}: no rows yet")
    check_whole(run, rows, allow_missing, "uses what is there", strengths, tell=tell)
    return [row for row in rows if strengths is None or strength_from_json(row["lambda"]) in strengths]


def read_pooled(runs: Sequence[Path], allow_missing: bool = False, tell: Tell = warnings.warn) -> Pooled:
    """Returns the rows of runs.

    Args:
      allow_missing: whether completions may be missing.
      tell: hears which are.

    Raises:
      ValueError: no rows, missing ones, rows that no mixture of two models has drawn as it is, or runs that differ in
        models, settings or prompts, or have the same completions.
    """
    found = []
    for run in runs:
        name, rows = shown(run, 200), read_whole(run, allow_missing, tell)
        manifest = read_manifest(run)
        check_as_is(rows, manifest, name)
        _check_pair(rows, name)
        found.append((name, rows, manifest))
    first = found[0]
    for other in found[1:]:
        _check_same(first, other)
    _check_once(found)
    return Pooled([row for _, rows, _ in found for row in rows], first[2])


def check_as_is(rows: Iterable[dict], manifest: Mapping, name: str) -> None:
    """Raises ValueError where rows are not drawn from the mixture as it is, or answer later turns.

    Args:
      name: of the run, for errors.
    """
    decode = manifest["identity"].get("decode", {})
    for setting, plain in PLAIN.items():
        if setting in decode and decode[setting] not in plain:
            raise ValueError(
                f"{name}: expected completions of the mixture as it is, found {setting} {decode[setting]}, "
                "whose law is another"
            )
    for row in rows:
        place = f"{name}: prompt {shown(row['prompt_id'], 60)}"
        if "draw" in row or "search" in row or "exact" in row:
            found = shown(row.get("draw", "a search"), 60)
            raise ValueError(f"{place}: expected completions of --draw=mixture, found {found}")
        if row["log_normalizer"] is None:
            rule = shown(row.get("rule", "another"), 60)
            raise ValueError(f"{place}: expected the rule linear, found {rule}")
        if row.get("turn", 0):
            raise ValueError(f"{place}: expected prompts of one turn, found a later turn")


def _check_pair(rows: Iterable[dict], name: str) -> None:
    """Raises ValueError where rows are not of two language models, or do not tell their tokens."""
    for row in rows:
        place = f"{name}: prompt {shown(row['prompt_id'], 60)}"
        aligned = row["aligned_logprob"]
        if len(strength_from_json(row["lambda"])) > 1 or aligned is None or isinstance(aligned, list):
            raise ValueError(f"{place}: expected rows of one aligned model with probabilities of its own")
        if "tokens" not in row or "prompt_tokens" not in row:
            raise ValueError(f"{place}: expected rows with tokens and prompt_tokens; older runs lack them")


def _check_same(first: tuple, other: tuple) -> None:
    """Raises ValueError where two runs are of other models, settings or prompts."""
    (name, rows, manifest), (other_name, other_rows, other_manifest) = first, other
    if difference := differing(way(manifest), way(other_manifest)):
        raise ValueError(f"{other_name}: {shown(difference.name, 60)} is not that of {name}")
    prompts, others = (
        {row["prompt_id"]: row["prompt_tokens"] for row in each} for each in (rows, other_rows)
    )
    for prompt in prompts.keys() | others.keys():
        if prompt not in prompts or prompt not in others:
            lacking, having = (name, other_name) if prompt in others else (other_name, name)
            raise ValueError(
                f"{lacking}: expected the prompts of {having}, found none with id {shown(prompt, 60)}"
            )
        if prompts[prompt] != others[prompt]:
            raise ValueError(f"{other_name}: prompt {shown(prompt, 60)} is another than in {name}")


def _check_once(found: Sequence[tuple]) -> None:
    """Raises ValueError where a completion is there twice: the same prompt, sample, strength and seed."""
    runs: dict[tuple, int] = {}
    for number, (name, rows, _) in enumerate(found):
        for row in rows:
            key = row["prompt_id"], row["sample"], row.get("seed"), strength_from_json(row["lambda"])
            if runs.setdefault(key, number) != number:
                raise ValueError(f"{name}: has completions of {found[runs[key]][0]}; expected another --seed")
