"""An experiment as claims see it."""

from dataclasses import dataclass

from scipy.stats import norm

from dera_jax.analysis.estimates import Estimate
from scripts.reproduce import evidence as ev
from scripts.reproduce.evidence import Evidence, Quantity
from scripts.reproduce.spread import difference


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
    has_optimum: bool = False
    """Whether the optimum of the reward is known: it is what the models were trained for, and bounded."""

    @property
    def name(self) -> str:
        """Of the experiment."""
        return self.evidence.experiment.name

    @property
    def single(self) -> bool:
        """Whether there is one training for every strength, of the aligned model or of the retrained ones."""
        return any(
            len({seed for _, seed in rows}) < 2 for rows in (self.evidence.dera, self.evidence.retrained)
        )

    @property
    def moved(self) -> bool:
        """Whether alignment did anything to the reward: where nothing moved, nothing can agree or disagree.

        At any strength up to 1, as one that goes too far may end where it began; by Bonferroni's intervals.
        """
        dera = self.evidence.dera
        tried = sorted({s for s, _ in dera if 0 < s <= 1}) or [1.0]
        wider = norm.ppf(1 - 0.025 / len(tried)) / norm.ppf(0.975)
        changes = [difference(ev.rows_at(dera, s), ev.rows_at(dera, 0.0), self.reward) for s in tried]
        ends = [(c.mean + wider * (c.low - c.mean), c.mean + wider * (c.high - c.mean)) for c in changes]
        return any(low > 0 or high < 0 for low, high in ends)


def show(found: Estimate, digits: int = 3) -> str:
    """Returns a mean with its interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


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
