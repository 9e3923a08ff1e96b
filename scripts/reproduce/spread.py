"""Differences of DeRa and retrained models with intervals that have the prompts and the trainings in them.

A mean over prompts has an interval that says what other prompts would change. What another training would change is
told by the seeds. The variance of a difference is the sum of three independent parts: of the prompts, of the aligned
models, whose every strength comes from the same training, and of the retrained models. Half its interval's width is

  t(ν) √(Σ vᵢ),      ν = (Σ vᵢ)² / Σ (vᵢ² / νᵢ)

with νᵢ degrees of freedom of each part (Welch and Satterthwaite), so that three trainings count as three. A training's
own mean has the noise of its completions in it, which the prompts' part has too: intervals are rather too wide.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from dera_jax.analysis.estimates import Estimate, estimate
from scripts.reproduce.evidence import Evidence, Quantity, Rows, prompt_means


@dataclass(frozen=True)
class Difference:
    """DeRa less retrained."""

    estimate: Estimate
    single: bool
    """Whether one of the two is one training, whose own spread is not in the interval."""
    noise: float
    """Standard error: of a difference of 0 the mean |difference| would be 0.8 times this."""


@dataclass(frozen=True)
class Part:
    """What trainings contribute to a variance."""

    variance: float
    freedom: int
    """Degrees of freedom; 0 where one training says nothing of others."""


def combine(prompts: Sequence[float], parts: Sequence[Part], center: float | None = None) -> Difference:
    """Returns a difference from its values by prompt and what trainings add.

    Args:
      center: its mean, where that is not the mean of the values: they then are its influences.
    """
    values = np.asarray(prompts, np.float64)
    mean = float(values.mean()) if center is None else center
    count = len(values)
    every = [Part(float(values.var(ddof=1)) / count, count - 1) if count > 1 else Part(0.0, 0), *parts]
    known = [part for part in every if part.freedom and part.variance > 0]
    variance = sum(part.variance for part in known)
    half = 0.0
    if known:
        freedom = variance**2 / sum(part.variance**2 / part.freedom for part in known)
        half = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
    single = any(not part.freedom for part in parts)
    return Difference(Estimate(mean, mean - half, mean + half), single, math.sqrt(variance))


def gap(found: Evidence, quantity: Quantity, strengths: Sequence[float], ratio: bool = False) -> Difference:
    """Returns the mean over strengths of DeRa's mean less the retrained models'.

    Args:
      strengths: of both; at least one.
      ratio: of the logarithms of both means instead, which must be above 0.
    """
    ours, theirs = _means(found.dera, quantity, strengths), _means(found.retrained, quantity, strengths)
    prompts = sorted(
        set.intersection(
            *({*each} for some in (ours, theirs) for seeds in some.values() for each in seeds.values())
        ),
        key=str,
    )
    influence, center = np.zeros(len(prompts)), 0.0
    for strength in strengths:
        for sign, some in ((1, ours), (-1, theirs)):
            table = np.array([[each[p] for p in prompts] for each in some[strength].values()]).mean(axis=0)
            mean = table.mean()
            center += sign * _told(mean, ratio) / len(strengths)
            influence += sign * (table / mean if ratio else table) / len(strengths)
    parts = [_of_aligned(ours, ratio), _of_retrained(theirs, ratio, _means(found.retrained, quantity))]
    return combine(influence, parts, center)


def _means(
    rows: Mapping[tuple[float, int], Rows], quantity: Quantity, strengths: Sequence[float] | None = None
) -> dict[float, dict[int, dict]]:
    """Returns the means by strength, seed and prompt."""
    found: dict[float, dict[int, dict]] = defaultdict(dict)
    for (strength, seed), some in rows.items():
        if strength and (strengths is None or strength in strengths):
            found[strength][seed] = prompt_means(some, quantity)
    return found


def _of_aligned(means: Mapping[float, Mapping[int, dict]], ratio: bool) -> Part:
    """Returns what the aligned model's training adds: it is the same one at every strength."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    shared = [strength for strength, seeds in means.items() if len(seeds) == max(map(len, means.values()))]
    for strength in shared:
        for seed, each in means[strength].items():
            by_seed[seed].append(_told(float(np.mean(list(each.values()))), ratio))
    levels = [float(np.mean(some)) for some in by_seed.values()]
    if len(levels) < 2:
        return Part(0.0, 0)
    # Some strengths may have been decoded with the first model alone.
    trainings = float(np.mean([1 / len(seeds) for seeds in means.values()]))
    return Part(float(np.var(levels, ddof=1)) * trainings, len(levels) - 1)


def _of_retrained(
    means: Mapping[float, Mapping[int, dict]], ratio: bool, everywhere: Mapping[float, Mapping[int, dict]]
) -> Part:
    """Returns what retrained models add: trainings of their own at every strength, of one spread.

    Args:
      everywhere: means of all strengths: those with several seeds tell the spread of those with one.
    """
    squares, freedom = 0.0, 0
    for strength, seeds in everywhere.items():
        if len(seeds) > 1 and strength != 1:
            levels = [_told(float(np.mean(list(each.values()))), ratio) for each in seeds.values()]
            squares += float(np.var(levels, ddof=1)) * (len(levels) - 1)
            freedom += len(levels) - 1
    if not freedom:
        return Part(0.0, 0)
    trainings = sum(1 / len(seeds) for seeds in means.values()) / len(means) ** 2
    return Part(squares / freedom * trainings, freedom)


def _told(mean: float, ratio: bool) -> float:
    return math.log(max(mean, 1e-9)) if ratio else mean


def between(
    rows: Mapping[tuple[float, int], Rows], quantity: Quantity, one: float, other: float
) -> Difference:
    """Returns the mean of retrained models at one strength less that at another."""
    everywhere = _means(rows, quantity)
    tables = []
    for strength in (one, other):
        seeds = everywhere[strength].values()
        prompts = sorted(set.intersection(*({*each} for each in seeds)), key=str)
        tables.append(np.array([[each[p] for p in prompts] for each in seeds]).mean(axis=0))
    parts = [_of_retrained({s: everywhere[s]}, False, everywhere) for s in (one, other)]
    return combine(tables[0] - tables[1], parts)


def difference(ours: Rows, theirs: Rows, quantity: Quantity) -> Estimate:
    """Returns the mean of `ours` less `theirs`, prompt by prompt; of several seeds, of all their rows."""
    a, b = (prompt_means(rows, quantity) for rows in (ours, theirs))
    prompts = sorted(a.keys() & b.keys(), key=str)
    return estimate([a[p] - b[p] for p in prompts], prompts)


def change(
    rows: Mapping[tuple[float, int], Rows], quantity: Quantity, low: Rows, strength: float
) -> Difference:
    """Returns what a quantity changes from the rows of λ = 0 to those of a strength, of all trainings there."""
    start = prompt_means(low, quantity)
    seeds = {seed: prompt_means(some, quantity) for (at, seed), some in rows.items() if at == strength}
    prompts = sorted(set.intersection({*start}, *({*each} for each in seeds.values())), key=str)
    table = np.array([[each[p] - start[p] for p in prompts] for each in seeds.values()])
    levels = table.mean(axis=1)
    part = (
        Part(float(np.var(levels, ddof=1)) / len(levels), len(levels) - 1)
        if len(levels) > 1
        else Part(0.0, 0)
    )
    return combine(table.mean(axis=0), [part])
