"""Rows to evidence: what each way to a strength shows, with intervals over prompts, and how far two agree.

A way is DeRa, retraining at β/λ, the combination of weights, or DeRa's samples weighted to the sequence-level
mixture (Eq. 5). The curves of one experiment share prompts, so a difference is taken prompt by prompt.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dera_jax.analysis.estimates import Estimate, estimate
from dera_jax.analysis.importance import log_weights
from dera_jax.common.json_files import read_json
from dera_jax.experiments.declare import Experiment, Step
from dera_jax.results.reading import read_rows
from scripts.reproduce.runner import Folders, is_kept

WHOLE = ("eos", "stop", "length")
"""Finish reasons of whole responses of at most the limit's length."""
Rows = list[dict]
Quantity = Callable[[dict], float | None]
"""What a row shows; None where it shows nothing."""


@dataclass(frozen=True)
class Evidence:
    """The rows of an experiment: as far as they have been made, by strength and seed."""

    experiment: Experiment
    dera: dict[tuple[float, int], Rows]
    retrained: dict[tuple[float, int], Rows]
    """At λ = 1 the aligned models themselves, at 0 the reference."""
    combined: dict[tuple[float, int], Rows]
    missing: list[str]
    """Measurements that were not made."""
    accuracies: dict[str, dict[float, Estimate]] = field(default_factory=dict)
    """Eq. 14 by way and strength."""
    manifests: dict[str, dict] = field(default_factory=dict)
    """By measurement: how it was made."""

    @cached_property
    def seconds(self) -> float:
        """Time that all training and decoding took."""
        steps: dict[str, float] = {}
        for told in self.manifests.values():
            made = told["reproduction"]
            steps[" ".join(made["command"])] = made["seconds"]
            for lineage in made["models"].values():
                steps |= {" ".join(step["command"]): step["seconds"] for step in lineage}
        return sum(steps.values())


def read_evidence(experiment: Experiment, folders: Folders) -> Evidence:
    """Returns what the results hold of an experiment."""
    found = Evidence(experiment, {}, {}, {}, [])

    def rows_of(step: Step) -> Rows:
        if not is_kept(step, folders):
            found.missing.append(step.folder)
            return []
        found.manifests[step.folder] = read_json(folders.results / step.folder / "manifest.json")
        return read_rows(folders.results / step.folder)

    for seed in range(experiment.num_seeds):
        for strength, rows in by_strength(rows_of(experiment.dera(seed))).items():
            found.dera[strength, seed] = rows
            if strength in (0.0, 1.0):
                found.retrained[strength, seed] = rows
                found.combined.setdefault((strength, 0), rows)
    for strength, seed in experiment.trials():
        if rows := rows_of(experiment.retrained_sweep(strength, seed)):
            found.retrained[strength, seed] = rows
    for strength in experiment.combined:
        if rows := rows_of(experiment.combined_sweep(strength)):
            found.combined[strength, 0] = rows
    if experiment.pairs is not None:
        _read_accuracies(found, folders)
    return found


def _read_accuracies(found: Evidence, folders: Folders) -> None:
    experiment = found.experiment
    steps = [("DeRa", None, experiment.dera_pairs())]
    steps += [("retrained", s, experiment.retrained_pairs(s)) for s in experiment.retrained if s != 1]
    for way, strength, step in steps:
        if not is_kept(step, folders):
            found.missing.append(step.folder)
            continue
        told = read_json(folders.results / step.folder)
        found.manifests[step.folder] = told
        for line in told["found"]:
            at = line["lambda"] if strength is None else strength
            known = {name: math.nan if value is None else value for name, value in line["accuracy"].items()}
            found.accuracies.setdefault(way, {})[at] = Estimate(**known)


def by_strength(rows: Iterable[dict]) -> dict[float, Rows]:
    """Returns rows by their strength."""
    found: dict[float, Rows] = defaultdict(list)
    for row in rows:
        found[row["lambda"]].append(row)
    return dict(found)


def mean(rows: Rows, quantity: Quantity) -> Estimate:
    """Returns the mean of what rows show, with its interval over prompts; of several seeds, of all their rows."""
    found = [(value, row["prompt_id"]) for row in rows if (value := quantity(row)) is not None]
    return estimate([value for value, _ in found], [prompt for _, prompt in found])


def prompt_means(rows: Rows, quantity: Quantity) -> dict:
    """Returns the mean of what the rows of each prompt show; of several seeds, of all their rows."""
    shown = defaultdict(list)
    for row in rows:
        if (value := quantity(row)) is not None:
            shown[row["prompt_id"]].append(value)
    return {prompt: float(np.mean(each)) for prompt, each in shown.items()}


def curve(rows: dict[tuple[float, int], Rows], quantity: Quantity) -> dict[float, Estimate]:
    """Returns a mean for each strength, over all seeds there are, in increasing order."""
    together: dict[float, Rows] = defaultdict(list)
    for strength, seed in sorted(rows):
        together[strength] += rows[strength, seed]
    return {strength: mean(some, quantity) for strength, some in together.items()}


def weighted(rows: Rows, quantity: Quantity) -> Estimate | None:
    """Returns the mean under the sequence-level mixture (Eq. 5), by weights exp(Σ log zₜ) within each prompt.

    Responses are of at most the limit's length, as they were in training: a completion that was cut off is a whole
    one, and its weight is known too, so that at λ = 0 the mean is DeRa's own. None if there are no rows.
    """
    by = log_weights([row for row in rows if quantity(row) is not None], WHOLE)
    means = []
    for found in by.values():
        logs = np.array([log_weight for log_weight, _ in found])
        shown = [quantity(row) for _, (row, *_) in found]
        means.append(float(np.average(shown, weights=np.exp(logs - logs.max()))))
    return estimate(means, list(by)) if means else None


def rows_at(rows: dict[tuple[float, int], Rows], strength: float) -> Rows:
    """Returns the rows of one strength, of all seeds."""
    return [row for (at, _), some in sorted(rows.items()) if at == strength for row in some]


def half(rows: dict[tuple[float, int], Rows], which: int) -> dict[tuple[float, int], Rows]:
    """Returns the rows of one half of the prompts, 0 to choose on or 1 to judge by."""

    def belongs(row: dict) -> bool:
        return zlib.crc32(str(row["prompt_id"]).encode()) % 2 == which

    return {at: list(filter(belongs, some)) for at, some in rows.items()}


def lengths(rows: Sequence[dict]) -> np.ndarray:
    """Returns the completions' lengths in tokens."""
    return np.array([row["length"] for row in rows])


def references_of(path: Path) -> dict[str, list[str]]:
    """Returns what people wrote for each prompt of a file."""
    from dera_jax.data.records import load_records

    return {record.fields["id"]: record.fields["references"] for record in load_records(str(path))}
