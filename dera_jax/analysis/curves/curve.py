"""A curve: what a pool says of every strength, with intervals over prompts."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.curves.groups import PerPrompt
from dera_jax.analysis.curves.laws import Law, Point
from dera_jax.analysis.estimates import Estimate, estimate

LEAST_EFFECTIVE = 0.1
"""Share of the pool that must carry the weight of a strength for it to be drawn."""


@dataclass(frozen=True)
class CurvePoint:
    """A strength."""

    lambda_: float
    effective: float
    figures: Mapping[str, Estimate]
    slopes: Mapping[str, Estimate]
    values: Mapping[str, PerPrompt]
    """Of each prompt, what the figures are the means of."""

    @property
    def drawn(self) -> bool:
        """Whether enough of the pool carries its weight."""
        return self.effective >= LEAST_EFFECTIVE


@dataclass(frozen=True)
class Curve:
    """What a pool says of strengths."""

    law: str
    prompts: tuple[Hashable, ...]
    points: tuple[CurvePoint, ...]
    """In increasing order of the strength."""

    @property
    def names(self) -> list[str]:
        """Of the figures: the rewards first."""
        last = ("kl", "length", "cut", "log_ratio", "log_z")
        found = list(dict.fromkeys(name for point in self.points for name in point.figures))
        return [name for name in found if name not in last] + [name for name in last if name in found]

    @property
    def drawn(self) -> list[CurvePoint]:
        """Points of which the pool says enough."""
        return [point for point in self.points if point.drawn]


def make_curve(law: Law, strengths: Sequence[float]) -> Curve:
    """Returns what a pool says of each strength.

    Raises:
      ValueError: no completion of any prompt is a member of the law.
    """
    prompts = law.pool.prompts
    return Curve(law.name, prompts, tuple(_point(law.at(s), prompts) for s in sorted(set(strengths))))


def _point(found: Point, prompts: Sequence[Hashable]) -> CurvePoint:
    return CurvePoint(
        lambda_=found.lambda_,
        effective=found.effective,
        figures=_estimates(found.figures, prompts),
        slopes=_estimates(found.slopes, prompts),
        values=found.figures,
    )


def _estimates(values: Mapping[str, PerPrompt], prompts: Sequence[Hashable]) -> dict[str, Estimate]:
    found = {}
    for name, each in values.items():
        known = ~np.isnan(each)
        if known.any():
            kept = [prompt for prompt, there in zip(prompts, known, strict=True) if there]
            found[name] = estimate(each[known], kept)
        else:
            found[name] = Estimate(math.nan, math.nan, math.nan)
    return found
