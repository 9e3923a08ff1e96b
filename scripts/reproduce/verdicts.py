"""Verdicts: what an interval says of a claim, by a margin that was stated before."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dera_jax.analysis.estimates import Estimate
from scripts.reproduce.subjects import Subject

AGREES, DISAGREES, UNDECIDED, CANNOT = "agrees", "disagrees", "undecided", "cannot say"
SIGNS = {AGREES: "✓", DISAGREES: "✗", UNDECIDED: "?", CANNOT: "–"}


@dataclass(frozen=True)
class Cell:
    """What one experiment says of one claim."""

    verdict: str
    finding: str
    """With the interval, for people."""
    single: bool = False
    """Whether one training stands behind it, whose own spread is not in the interval."""

    @property
    def sign(self) -> str:
        """For a matrix; ¹ marks a single training."""
        return SIGNS[self.verdict] + ("¹" if self.single and self.verdict != CANNOT else "")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that an experiment can be asked about."""

    title: str
    """For a matrix."""
    sentence: str
    paper: str
    """Its figures there."""
    test: str
    """What makes it agree."""
    ask: Callable[[Subject], Cell]
    expected: str | None = AGREES
    """What the paper says of the sentence: that it is so, that it is not (`DISAGREES`), or nothing (None)."""
    denied: str = ""
    """The sentence as the paper has it, where it says that it is not so."""


def tally(verdicts: Sequence[str]) -> str:
    """Returns how many agree, disagree and are undecided.

    >>> tally(["agrees", "undecided", "undecided", "cannot say"])
    '1 agrees, 0 disagree, 2 undecided'
    """
    agrees, disagrees, undecided = (verdicts.count(verdict) for verdict in (AGREES, DISAGREES, UNDECIDED))
    plural = {True: "", False: "s"}
    return f"{agrees} agree{plural[agrees != 1]}, {disagrees} disagree{plural[disagrees != 1]}, {undecided} undecided"


def nothing(why: str) -> Cell:
    """Returns the cell of an experiment that has nothing to say."""
    return Cell(CANNOT, why)


def equivalence(found: Estimate, margin: float) -> str:
    """Returns whether a difference is none, by two one-sided tests: the 95 % interval lies within ± margin.

    It is one where the interval lies outside of it on one side.
    """
    if any(map(math.isnan, (found.low, found.high))) or not margin > 0:
        return CANNOT
    if -margin < found.low and found.high < margin:
        return AGREES
    return DISAGREES if found.low > margin or found.high < -margin else UNDECIDED


def rise(found: Estimate, least: float = 0.0) -> str:
    """Returns whether something rises: the interval lies above 0. It does not if a rise of `least` is excluded."""
    if any(map(math.isnan, (found.low, found.high))):
        return CANNOT
    if found.high < least or found.high <= 0:
        return DISAGREES
    return AGREES if found.low > 0 else UNDECIDED


def fall(found: Estimate, least: float = 0.0) -> str:
    """Returns whether something falls: as `rise` of the opposite."""
    return rise(Estimate(-found.mean, -found.high, -found.low), least)
