"""What strengths are compared by: figures of the same completions, an objective, constraints.

The objective is a number per completion, to be as large as possible: a reward, or 1, ½ or 0 where the
completion has more, as much or less of a reward than the one of the same prompt and sample at another
strength; less a price per nat of KL divergence. A constraint bounds the mean of a figure. NumPy only.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dera_jax.analysis.tuning.grid import FIELDS, WIN_RATE, Grid, told_names
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.strengths import Strength, format_strength

_CONSTRAINT = re.compile(r"(.+?)(>=|<=)([+-]?\d*\.?\d+(?:[eE]-?\d+)?)(%?)", re.DOTALL)


@dataclass(frozen=True)
class Objective:
    """What is to be as large as possible."""

    reward: str
    """That is its value, or that judges."""
    kl_price: float = 0.0
    """Of a nat of KL divergence from the reference, in the objective's unit; ≥ 0."""
    against: Strength | None = None
    """The strength that a win rate is against; None is the reward itself."""

    @property
    def names(self) -> list[str]:
        """The figures it is made of."""
        return [self.reward, *(["kl"] if self.kl_price else [])]

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        price = f" − {self.kl_price:g} · KL" if self.kl_price else ""
        if self.against is None:
            return shown(self.reward) + price
        return f"win rate by {shown(self.reward)} against λ = {format_strength(self.against)}{price}"

    def values(self, grid: Grid) -> Float[np.ndarray, "strengths rows"]:
        """Returns its value of every completion.

        Raises:
          ValueError: the strength that it is against is not there.
        """
        values = grid.figures[self.reward]
        if self.against is not None:
            base = values[grid.index(self.against)]
            values = (values > base) + 0.5 * (values == base)
        return values - self.kl_price * grid.figures["kl"] if self.kl_price else values


def make_objective(
    text: str | None, judge: str | None, against: Strength | None, kl_price: float, rewards: Sequence[str]
) -> Objective:
    """Returns the objective that options name.

    Args:
      text: a reward or `win-rate`; None is the only reward.
      judge: the reward of a win rate.
      against: λ of a win rate.
      rewards: those that the rows have.

    Raises:
      ValueError: the rows have no such reward, or options contradict each other.
    """
    if not kl_price >= 0 or kl_price == float("inf"):
        raise ValueError(f"--kl-price: expected a number of at least 0, found {kl_price}")
    there = f"the rows have {told_names(rewards) or 'no rewards; add one with ' + spelled('score')}"
    if text is None and len(rewards) != 1:
        raise ValueError(f"--objective: expected a reward or {WIN_RATE}; {there}")
    if text == WIN_RATE:
        if judge not in rewards:
            raise ValueError(f"--judge: expected the reward that decides who wins, found {judge}; {there}")
        return Objective(judge, kl_price, against)
    if judge is not None:
        raise ValueError(f"--judge has no meaning without --objective={WIN_RATE}")
    name = rewards[0] if text is None else text
    if name not in rewards:
        raise ValueError(f"--objective: no reward {name!r}; {there}")
    return Objective(name, kl_price)


@dataclass(frozen=True)
class Constraint:
    """A bound on the mean of a figure."""

    text: str
    name: str
    at_least: bool
    """Else at most."""
    bound: float
    """In the figure's unit, or, if relative, the change allowed as a share of the mean at λ = 0."""
    relative: bool

    def margins(self, grid: Grid) -> Float[np.ndarray, "strengths rows"]:
        """Returns what each completion has to spare: the constraint holds where its mean is ≥ 0.

        Raises:
          ValueError: the bound is relative to λ = 0, which is not there, or where the mean is 0.
        """
        values = grid.figures[self.name]
        bound = self._relative_to(grid) if self.relative else self.bound
        return values - bound if self.at_least else bound - values

    def _relative_to(self, grid: Grid) -> Float[np.ndarray, " rows"]:
        reference = (0.0,) * max(map(len, grid.strengths))
        base = grid.figures[self.name][grid.index(reference)]
        if base.mean() == 0:
            raise ValueError(
                f"--constraint={self.text}: the mean of {self.name} is 0 at λ = 0; write a number"
            )
        # Of a negative mean, −2 % is further down too.
        return base * (1 + self.bound * np.sign(base.mean()))


def parse_constraint(text: str, rewards: Sequence[str]) -> Constraint:
    """Returns the constraint `NAME>=NUMBER`, `NAME<=NUMBER`; with `%`, the change from λ = 0.

    Args:
      rewards: that NAME may be, beside `kl` and `length`.

    Raises:
      ValueError: another form, or no such figure.

    >>> parse_constraint("slots>=-2%", ["slots"]).bound
    -0.02
    """
    match = _CONSTRAINT.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"--constraint: expected NAME>=NUMBER or NAME<=NUMBER, with % for the change from λ = 0, "
            f"found {text!r}"
        )
    name, sign, number, percent = match.groups()
    if name.strip() not in (*rewards, *FIELDS):
        raise ValueError(
            f"--constraint={text}: no figure {name.strip()!r}; the rows have {told_names((*rewards, *FIELDS))}"
        )
    bound = float(number) / (100 if percent else 1)
    if not math.isfinite(bound):
        raise ValueError(f"--constraint={text}: expected a finite number, found {number}")
    return Constraint(text.strip(), name.strip(), sign == ">=", bound, bool(percent))
