"""Means over prompts, with intervals."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
"""Coverage of all intervals."""
FEW_GROUPS = 10
"""Fewer groups that all agree say nothing about how far others may be from them."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over prompts."""

    mean: float
    low: float
    """NaN where there is no interval: of one prompt only, or of fewer than 10 that all agree."""
    high: float
    """NaN likewise."""

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean when whole groups are drawn with replacement.

    A resample's mean is  Σ_g c_g S_g / Σ_g c_g n_g,  group g drawn c_g times, with sum S_g and n_g
    values. (NaN, NaN) if there is one group only, and if there are fewer than 10 whose means are all
    equal: their resamples are equal too, an interval of no length, which two prompts do not earn.

    Args:
      values: at least one, finite.
      groups: of each value: its prompt.
      resamples: number of draws; each gives two resamples.
      seed: of the draws; the same for equal arguments, in any order.
    """
    values = np.asarray(values, np.float64)
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    if len(numbers) < 2:
        return math.nan, math.nan
    center = math.fsum(values) / len(values)
    # Deviations: equal values then give an interval of no length, whatever the rounding.
    ascending = np.argsort(values)
    sums = np.bincount(index[ascending], values[ascending] - center)
    sizes = np.bincount(index).astype(np.float64)
    if len(numbers) < FEW_GROUPS and np.ptp(sums / sizes) <= 1e-12 * np.abs(values).max():
        return math.nan, math.nan
    # Which group a draw stands for hangs on what it holds, neither on its name nor on the order of rows; each
    # is read upwards and downwards, so that the interval of −x is that of x, turned around.
    counts = _resample_counts(len(numbers), resamples, seed)
    drawn = counts @ np.sort(sizes)
    upwards, downwards = (sums[np.lexsort((sign * sums, sizes))] for sign in (1, -1))
    means = center + np.concatenate([counts @ upwards / drawn, counts @ downwards / drawn])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _resample_counts(groups: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each group is drawn: [resamples, groups]. The same few serve a whole sweep."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return draws.astype(np.float64)


def estimate(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray) -> Estimate:
    """Returns the mean of at least one value, with its interval over groups, whatever their order."""
    return Estimate(math.fsum(values) / len(values), *bootstrap_interval(values, groups))


def ratio(above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray) -> Estimate:
    """Returns  Σ above / Σ below  over prompts, with its interval when prompts are drawn with replacement.

    NaN where Σ below is not above 0; no interval where that is so in a resample, or of fewer than 10 prompts.
    """
    above, below = (np.asarray(each, np.float64) for each in (above, below))
    if not below.sum() > 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(above.sum() / below.sum())
    if len(above) < FEW_GROUPS:
        return Estimate(mean, math.nan, math.nan)
    # By what they hold, so that their order says nothing.
    order = np.lexsort((above, below))
    counts = _resample_counts(len(above), 1000, 0)
    drawn = counts @ below[order]
    if not (drawn > 0).all():
        return Estimate(mean, math.nan, math.nan)
    low, high = np.quantile(counts @ above[order] / drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))


def paired_difference(
    values: dict[tuple[Hashable, ...], float], base: dict[tuple[Hashable, ...], float]
) -> Estimate | None:
    """Returns the mean of `values` less `base` over the keys of both, None if there are none.

    Args:
      values: by (prompt_id, sample, …).
      base: likewise, to be subtracted.
    """
    keys = [key for key in values if key in base]
    if not keys:
        return None
    return estimate([values[key] - base[key] for key in keys], [key[0] for key in keys])


def estimate_to_json(found: Estimate) -> dict[str, float | None]:
    """Returns mean and interval, null where there is no interval."""
    return {name: None if math.isnan(value) else value for name, value in vars(found).items()}


def estimate_from_json(told: Mapping[str, float | None]) -> Estimate:
    """Returns what `estimate_to_json` told."""
    return Estimate(**{name: math.nan if value is None else value for name, value in told.items()})
