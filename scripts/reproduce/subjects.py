"""An experiment as claims see it, what a claim came to, and how far two sets of rows are apart."""

from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.estimates import Estimate
from scripts.reproduce import evidence as ev
from scripts.reproduce.evidence import Evidence, Quantity

HOLDS, FAILS, PARTLY, OPEN = "holds", "fails", "partly", "not tested yet"


@dataclass(frozen=True)
class Subject:
    """An experiment with what it is judged by."""

    evidence: Evidence
    reward: Quantity
    """What the models were trained for; in the reward's unit."""
    quality: dict[str, Quantity]
    """What nobody paid for: larger is better."""
    objective: Quantity
    """What a user would choose a strength by."""
    told: str
    """The objective in words."""

    @property
    def name(self) -> str:
        """Of the experiment."""
        return self.evidence.experiment.name

    @property
    def moved(self) -> bool:
        """Whether alignment did anything to the reward: where nothing moved, nothing can agree or disagree."""
        dera = self.evidence.dera
        change = difference(ev.rows_at(dera, 1.0), ev.rows_at(dera, 0.0), self.reward)
        return change.low > 0 or change.high < 0


@dataclass(frozen=True)
class Verdict:
    """What one claim came to."""

    number: int
    claim: str
    paper: str
    ours: list[str]
    """A finding for each experiment that can say something."""
    verdict: str
    holds_if: str
    """What each finding is held to: ours, for the paper states none."""


def show(found: Estimate, digits: int = 3) -> str:
    """Returns a mean with its interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def tell_sides(by: dict[float, float], form: str) -> str:
    """Returns the means of what strengths below and above 1 have, in words; a side without any is left out."""
    sides = {"λ < 1": [v for s, v in by.items() if s < 1], "λ > 1": [v for s, v in by.items() if s > 1]}
    return ", ".join(f"{np.mean(some):{form}} for {name}" for name, some in sides.items() if some)


def together(found: list[bool]) -> str:
    """Returns the verdict of several findings."""
    return OPEN if not found else HOLDS if all(found) else PARTLY if any(found) else FAILS


def difference(ours: ev.Rows, theirs: ev.Rows, quantity: Quantity) -> Estimate:
    """Returns the mean of `ours` less `theirs`, prompt by prompt."""
    a, b = (ev.prompt_means(rows, quantity) for rows in (ours, theirs))
    prompts = sorted(a.keys() & b.keys(), key=str)
    return ev.estimate([a[p] - b[p] for p in prompts], prompts)


def ks(a: ev.Rows, b: ev.Rows) -> float:
    """Returns the Kolmogorov–Smirnov distance of two sets' lengths, in [0, 1]."""
    ours, theirs = np.sort(ev.lengths(a)), np.sort(ev.lengths(b))
    at = np.union1d(ours, theirs)
    shares = [np.searchsorted(some, at, side="right") / len(some) for some in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


def chosen(subject: Subject) -> float | None:
    """Returns the strength, of those retrained too, that DeRa's objective is best at on half of the prompts.

    None where there is nothing to choose from.
    """
    found = subject.evidence
    tried = {s for s, _ in found.dera} & {s for s, _ in found.retrained} - {0.0}
    if len(tried) < 2:
        return None
    means = ev.curve(ev.half(found.dera, 0), subject.objective)
    return max(sorted(tried), key=lambda s: means[s].mean)


def span(found: Evidence, quantity: Quantity) -> tuple[float, float]:
    """Returns the smallest and the largest mean of DeRa and retrained models up to λ = 2, never equal.

    Beyond, texts fall apart, and any gap would be small beside that.
    """
    curves = [ev.curve(rows, quantity) for rows in (found.dera, found.retrained)]
    means = [value.mean for curve in curves for strength, value in curve.items() if strength <= 2]
    return min(means), max(means) if max(means) > min(means) else min(means) + 1.0


def range_of(found: Evidence, quantity: Quantity) -> float:
    """Returns how far the means of both ways reach up to λ = 2."""
    low, high = span(found, quantity)
    return high - low
