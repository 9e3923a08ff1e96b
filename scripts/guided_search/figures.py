"""What rows say: means of each way at each strength, with 95 % intervals, and differences from the first way."""

import lzma
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dera_jax.analysis.best_of import choice_bound
from dera_jax.analysis.estimates import Estimate, estimate, paired_difference
from dera_jax.results.rows import parse_rows
from dera_jax.strengths import format_strength, strength_from_json

Quantity = Callable[[dict], float]


def passes(row: dict) -> float:
    """Returns the forward passes of each model for a token of the completion."""
    tokens = max(1, len(row["tokens"]))
    return row["search"]["passes"] / tokens if "search" in row else 1.0


def fluency(row: dict) -> float:
    """Returns log π_reference for a token, in nats."""
    return row["reference_logprob"] / max(1, len(row["tokens"]))


def kl_bound(row: dict) -> float:
    """Returns what the KL to the reference is, or is at most, on average over rows, in nats.

    Of one choice among n draws it grows by log n − (n − 1)/n at most; where the draws' law is itself another, by that
    law's. What is chosen without chance is as far as it is improbable.
    """
    kind, _, rest = row.get("draw", "mixture").partition(":")
    if kind == "mixture":
        return row["kl_to_reference"]
    if kind in ("lookahead", "lookahead-beams"):
        return -row["reference_logprob"]
    candidates = row["search"]["candidates"]
    if kind in ("best-of", "best-of-poisson"):
        return row["kl_to_reference"] + choice_bound(candidates)
    each = int(rest.partition(":")[0])
    return row["kl_to_reference"] + candidates / each * choice_bound(each)


@dataclass(frozen=True)
class Line:
    """A way at a strength."""

    way: str
    strength: str
    found: Mapping[str, Estimate]
    less: Mapping[str, Estimate]
    """The difference from the first way, paired by prompt and sample; none of itself."""
    count: int


def read_ways(folder: Path) -> dict[str, list[dict]]:
    """Returns the rows of each way, in the order of `commands.txt`."""
    found = {}
    for line in (folder / "commands.txt").read_text().splitlines():
        name = line.rpartition("--out=")[2].rstrip("'").rpartition("/")[2]
        file = folder / f"{name}.jsonl.xz"
        if file.is_file():
            found[name] = parse_rows(lzma.decompress(file.read_bytes()), file)[0]
    return found


def best_among(rows: Iterable[dict], weights: Mapping[str, float]) -> list[dict]:
    """Returns of each prompt's samples the one of the highest weighted sum of rewards, as best of n would take it."""
    by_prompt: dict = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)

    def worth(row: dict) -> float:
        return sum(weight * row["rewards"][name] for name, weight in weights.items())

    return [
        max(samples, key=worth)
        | {"search": {"candidates": len(samples), "passes": sum(len(row["tokens"]) for row in samples)}}
        for samples in by_prompt.values()
    ]


def lines_of(ways: Mapping[str, list[dict]], quantities: Mapping[str, Quantity]) -> list[Line]:
    """Returns a line for each way and strength."""
    first = next(iter(ways))
    bases = dict(_by_strength(ways[first]))
    found = []
    for way, rows in ways.items():
        for strength, some in _by_strength(rows):
            base = bases.get(strength) or next(iter(bases.values()))
            lacking = way == first
            found.append(
                Line(
                    way,
                    strength,
                    {name: _mean(some, of) for name, of in quantities.items()},
                    {} if lacking else {name: _difference(some, base, of) for name, of in quantities.items()},
                    len(some),
                )
            )
    return found


def _by_strength(rows: Iterable[dict]) -> list[tuple[str, list[dict]]]:
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(strength_from_json(row["lambda"]), []).append(row)
    return [(format_strength(strength), some) for strength, some in sorted(found.items())]


def _mean(rows: list[dict], of: Quantity) -> Estimate:
    return estimate([of(row) for row in rows], [row["prompt_id"] for row in rows])


def _difference(rows: list[dict], base: list[dict], of: Quantity) -> Estimate | None:
    """Returns the difference of the means over samples, paired by prompt."""

    def means(some: list[dict]) -> dict[tuple, float]:
        each: dict = {}
        for row in some:
            each.setdefault((row["prompt_id"],), []).append(of(row))
        return {key: sum(values) / len(values) for key, values in each.items()}

    return paired_difference(means(rows), means(base))
