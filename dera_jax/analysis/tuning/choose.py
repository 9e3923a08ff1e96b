"""The choice of a strength: on one part of the prompts, judged on the other.

The largest of many means is too large: where every strength is as good, noise decides and is counted as
gain. So the strength is chosen on some prompts and its value is that on others, which had no say. How
sure the choice is, bootstrap over prompts tells: the strength that each resample would have chosen.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dera_jax.analysis.estimates import LEVEL, Estimate, estimate
from dera_jax.analysis.tuning.grid import Grid
from dera_jax.analysis.tuning.objectives import Constraint, Objective
from dera_jax.common.hashed import hashed_uniform
from dera_jax.strengths import Strength, format_strength

MIN_PROMPTS = 8
"""Of either part; fewer say nothing."""
FEW = f"a sweep of at least {2 * MIN_PROMPTS} (--num-prompts) has enough for both, or --validation=RUN takes another's"
MORE = "sweep more of them (--num-prompts)"
"""Ways out where there are too few."""
RESAMPLES = 2000
RETRAINED: Strength = ()
"""Where a grid holds the completions of a model retrained at β/λ, which is no mixture of the others."""
ROUNDING = 1e-12
"""Two means this near, in units of the largest figure, are equal."""


def split(grid: Grid, share: float, seed: int = 0) -> tuple[Grid, Grid]:
    """Returns the parts to choose on and to validate on, by a hash of the prompt_id.

    Args:
      share: of the prompts to validate on, in (0, 1); each prompt's side is its own, so that more
        prompts move none. Where a part so gets too few, its share is exact: the first by their hashes.

    Raises:
      ValueError: either part has fewer than 8 prompts.
    """
    places = {prompt: hashed_uniform(seed, prompt) for prompt in grid.prompts}
    validating = {prompt for prompt, place in places.items() if place < share}
    if min(len(validating), len(places) - len(validating)) < MIN_PROMPTS:
        validating = set(sorted(places, key=places.get)[: round(share * len(places))])
    parts = grid.part(lambda prompt: prompt not in validating), grid.part(lambda prompt: prompt in validating)
    halves = "--validation=0.5 leaves enough for both"
    check_parts(*parts, halves if len(places) >= 2 * MIN_PROMPTS else FEW)
    return parts


def check_parts(choosing: Grid, validation: Grid, way_out: str = MORE) -> None:
    """Raises ValueError where a part has too few prompts, or there is nothing to choose from."""
    if len(choosing.strengths) < 2:
        only = format_strength(choosing.strengths[0]) if choosing.strengths else "none"
        raise ValueError(f"nothing to choose from: expected at least 2 strengths, found {only}")
    counts = [len(set(part.prompts)) for part in (choosing, validation)]
    if min(counts) < MIN_PROMPTS:
        raise ValueError(
            f"expected at least {MIN_PROMPTS} prompts to choose on and as many to validate on, "
            f"found {counts[0]} and {counts[1]}: {way_out}"
        )


@dataclass(frozen=True)
class Choice:
    """The strength chosen, and how sure that is."""

    strength: Strength
    satisfied: dict[Strength, bool]
    """Whether each meets all constraints, by its means."""
    shares: dict[Strength, float]
    """Of resamples of the prompts that choose each, constraints included; they fall short of 1 by those
    in which none meets the constraints."""

    @property
    def likely(self) -> list[Strength]:
        """The fewest strengths that 95 % of the resamples choose among; all that any does where none suffice."""
        chosen: list[Strength] = []
        total = 0.0
        for strength in sorted(self.shares, key=lambda s: (-self.shares[s], s)):
            if total >= LEVEL - ROUNDING or not self.shares[strength]:
                break
            chosen.append(strength)
            total += self.shares[strength]
        return sorted(chosen)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between which strengths the middle 95 % of the resamples choose; None of several aligned models."""
        chosen = sorted((s, share) for s, share in self.shares.items() if share)
        if len(self.strength) > 1 or not chosen:
            return None
        axis, shares = np.array([s[0] for s, _ in chosen]), np.cumsum([share for _, share in chosen])
        low, high = np.searchsorted(shares, shares[-1] * np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        return float(axis[low]), float(axis[min(high, len(axis) - 1)])


def choose(
    grid: Grid,
    objective: Objective,
    constraints: Sequence[Constraint] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Choice:
    """Returns the strength with the largest mean among those that meet the constraints.

    Of equal means, the one nearest to the reference, by Σ|λ|.

    Raises:
      ValueError: none meets the constraints; names the one that misses by least.
    """
    figures = np.stack([objective.values(grid), *(each.margins(grid) for each in constraints)])
    prompts, index = np.unique(_numbered(grid.prompts), return_inverse=True)
    sizes = np.bincount(index)
    sums = np.zeros((len(prompts), *figures.shape[:2]))  # [prompts, figures, strengths]
    np.add.at(sums, index, figures.transpose(2, 0, 1))
    tolerance = ROUNDING * np.abs(figures).max(axis=(1, 2))[:, None]
    means = sums.sum(axis=0) / sizes.sum()
    satisfied = (means[1:] >= -tolerance[1:]).all(axis=0)
    if not satisfied.any():
        raise ValueError(_nearest(grid, constraints, means[1:]))
    counts = np.random.default_rng(seed).multinomial(
        len(prompts), np.full(len(prompts), 1 / len(prompts)), size=resamples
    )
    resampled = np.tensordot(counts, sums, axes=1) / (counts @ sizes)[:, None, None]
    picks = _best(np.concatenate([means[None], resampled]), tolerance, grid.strengths)
    shares = np.bincount(picks[1:] + 1, minlength=len(grid.strengths) + 1)[1:] / resamples
    return Choice(
        strength=grid.strengths[picks[0]],
        satisfied=dict(zip(grid.strengths, map(bool, satisfied), strict=True)),
        shares=dict(zip(grid.strengths, map(float, shares), strict=True)),
    )


def _numbered(prompts: Sequence[Hashable]) -> Int[np.ndarray, " rows"]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])


def _best(
    means: Float[np.ndarray, "draws figures strengths"],
    tolerance: Float[np.ndarray, "figures 1"],
    strengths: Sequence[Strength],
) -> Int[np.ndarray, " draws"]:
    """Returns which strength each draw chooses, −1 where none meets the constraints.

    Args:
      means: of the objective, then of each constraint's margin.
    """
    allowed: Bool[np.ndarray, "draws strengths"] = (means[:, 1:] >= -tolerance[1:]).all(axis=1)
    values = np.where(allowed, means[:, 0], -np.inf)
    equal = values >= values.max(axis=1, keepdims=True) - tolerance[0]
    nearest = np.array(sorted(range(len(strengths)), key=lambda i: (sum(map(abs, strengths[i])), i)))
    picks = nearest[equal[:, nearest].argmax(axis=1)]
    return np.where(allowed.any(axis=1), picks, -1)


def _nearest(grid: Grid, constraints: Sequence[Constraint], means: np.ndarray) -> str:
    """Returns by how much the strength nearest to the constraints misses them."""
    scale = np.maximum(np.abs([grid.figures[each.name].mean() for each in constraints]), 1e-9)[:, None]
    best = int((np.minimum(means, 0) / scale).min(axis=0).argmax())
    missed = [
        f"{each.text} by {-margin:.3g} (it has {grid.figures[each.name][best].mean():.4g})"
        for each, margin in zip(constraints, means[:, best], strict=True)
        if margin < 0
    ]
    strength = format_strength(grid.strengths[best])
    return f"no strength meets the constraints: the nearest, λ = {strength}, misses {' and '.join(missed)}"


@dataclass(frozen=True)
class Part:
    """What one part of the prompts shows of every strength."""

    prompts: int
    completions: int
    """At each strength."""
    objective: dict[Strength, Estimate]
    figures: dict[str, dict[Strength, Estimate]]
    """Those that constraints bound, by name."""


@dataclass(frozen=True)
class Tuning:
    """A chosen strength and what is known of it."""

    choice: Choice
    choosing: Part
    validation: Part
    differences: dict[Strength, Estimate]
    """On the validation part, the objective less that at λ = 0 and at λ = 1, pair by pair."""
    margins: dict[str, Estimate]
    """On the validation part, what each constraint has to spare; held where ≥ 0."""


def tune(
    choosing: Grid, validation: Grid, objective: Objective, constraints: Sequence[Constraint] = ()
) -> Tuning:
    """Returns the strength chosen on one part of the prompts, and its value on the other.

    Args:
      choosing: has the strengths of `validation`, on other prompts.

    Raises:
      ValueError: too few prompts or strengths, or none meets the constraints.
    """
    check_parts(choosing, validation)
    choice = choose(choosing, objective, constraints)
    return Tuning(
        choice=choice,
        choosing=_part(choosing, objective, constraints),
        validation=_part(validation, objective, constraints),
        differences=differences(validation, objective, choice.strength),
        margins=margins(validation, constraints, choice.strength),
    )


def _part(grid: Grid, objective: Objective, constraints: Sequence[Constraint]) -> Part:
    def estimates(values):
        return {s: estimate(row, grid.prompts) for s, row in zip(grid.strengths, values, strict=True)}

    return Part(
        prompts=len(set(grid.prompts)),
        completions=len(grid.keys),
        objective=estimates(objective.values(grid)),
        figures={each.name: estimates(grid.figures[each.name]) for each in constraints},
    )


def differences(
    grid: Grid, objective: Objective, strength: Strength, others: Sequence[Strength] | None = None
) -> dict[Strength, Estimate]:
    """Returns the objective at `strength` less that at others, pair by pair.

    Args:
      others: λ = 0 and λ = 1 of each aligned model by default; those that are not there are left out.
    """
    values = objective.values(grid)
    own = values[grid.index(strength)]
    others = ends(max(map(len, grid.strengths))) if others is None else others
    return {
        other: estimate(own - values[grid.index(other)], grid.prompts)
        for other in others
        if other in grid.strengths and other != strength
    }


def margins(grid: Grid, constraints: Sequence[Constraint], strength: Strength) -> dict[str, Estimate]:
    """Returns what each constraint has to spare at a strength, by its text."""
    return {
        each.text: estimate(each.margins(grid)[grid.index(strength)], grid.prompts) for each in constraints
    }


def ends(models: int) -> list[Strength]:
    """Returns the strengths of the reference and of each of so many aligned models alone.

    >>> ends(1), ends(2)
    ([(0.0,), (1.0,)], [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    """
    return [tuple(float(i == j) for j in range(models)) for i in (-1, *range(models))]
