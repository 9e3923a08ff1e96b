"""Questions to an experiment, one for each kind of claim, and the margins that decide them.

Agreement is tested as equivalence: the 95 % interval of a signed mean difference, trainings included, lies within ± the
margin. Margins were chosen with the paper's own figures in mind, and stand here, not in the text.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from dera_jax.analysis.estimates import Estimate
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.spread import Difference, between, change, gap
from scripts.reproduce.subjects import Subject, chosen, range_of, show
from scripts.reproduce.verdicts import (
    AGREES,
    DISAGREES,
    UNDECIDED,
    Cell,
    equivalence,
    fall,
    nothing,
    rise,
)

SHARE_OF_RANGE = 0.1
"""Margin of a reward, as a share of how far its means reach up to λ = 2. The paper's mean gap is .046 of .6."""
KL_FACTOR = 1.25
"""Margin of a KL divergence: larger or smaller by this factor."""
TOKENS = 2.3
"""Margin of a length; the paper's means are within that."""
RANK = 0.9
"""Spearman's ρ that counts as agreement; the paper's is .99."""
ACCURACY = 0.01
"""Margin of a share of pairs."""
SLIGHT = {"likelihood": 0.05, "known words": 0.01, "variety": 0.01, "slots": 0.02, "BLEU of a text": 1.0}
"""Falls of qualities that are too small to matter, in the units of each."""
SIDES = {"λ < 1": (0.0, 1.0), "1 < λ ≤ 2": (1.0, 2.0 + 1e-9), "λ > 2": (2.0 + 1e-9, math.inf)}
UNMOVED = "at no strength up to 1 is the reward told apart from the reference's"
NOT_BOTH = "no strength of both there"
NO_CHOICE = "fewer than two strengths to choose from"


def compared(subject: Subject, side: str) -> list[float]:
    """Returns the strengths of one side that both ways have."""
    low, high = SIDES[side]
    both = {s for s, _ in subject.evidence.dera} & {s for s, _ in subject.evidence.retrained}
    return sorted(s for s in both if low < s < high and s != 1)


def agreement(side: str, quantity_of, margin_of, told: str, ratio: bool = False):
    """Returns the question whether both ways show the same on one side of 1, on average over its strengths."""

    def ask(subject: Subject) -> Cell:
        strengths = compared(subject, side)
        if not strengths:
            return nothing(NOT_BOTH)
        if not subject.moved:
            return nothing(UNMOVED)
        found, margin = gap(subject.evidence, quantity_of(subject), strengths, ratio), margin_of(subject)
        return Cell(equivalence(found.estimate, margin), _told(found, margin, told, ratio), found.single)

    return ask


def _told(found: Difference, margin: float, unit: str, ratio: bool) -> str:
    if ratio:
        times = Estimate(*(math.exp(value) for value in vars(found.estimate).values()))
        return f"{show(times, 2)} times that of retrained models, margin {math.exp(margin):.2f}"
    floor = 0.8 * found.noise
    estimate = found.estimate
    return (
        f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]{unit}, margin {margin:.3f}, noise floor "
        f"{floor:.3f}"
    )


def reward(subject: Subject):
    """Returns what the models were trained for."""
    return subject.reward


def of_range(subject: Subject) -> float:
    """Returns the margin of a reward."""
    return SHARE_OF_RANGE * range_of(subject.evidence, subject.reward)


def ranks(subject: Subject) -> Cell:
    """Whether both ways put all strengths in one order; intervals by resampled prompts and trainings."""
    strengths = [s for side in SIDES for s in compared(subject, side)]
    if len(strengths) < 4:
        return nothing("fewer than four strengths of both")
    if not subject.moved:
        return nothing(UNMOVED)
    ways = [_tables(rows, strengths, subject) for rows in (subject.evidence.dera, subject.evidence.retrained)]
    random = np.random.default_rng(0)
    count = next(iter(ways[0].values())).shape[1]

    def rho(draw) -> float:
        return float(spearmanr(*([draw(way[s]) for s in strengths] for way in ways)).statistic)

    def resampled() -> float:
        prompts = random.integers(count, size=count)
        return rho(lambda table: table[random.integers(len(table))][prompts].mean())

    found = np.nan_to_num([resampled() for _ in range(400)])
    low, high = np.quantile(found, [0.025, 0.975])
    point = rho(lambda table: table.mean())
    verdict = AGREES if low >= RANK else DISAGREES if high < RANK else UNDECIDED
    told = f"ρ = {point:.2f} [{low:.2f}, {high:.2f}] over {len(strengths)} strengths, at least {RANK}"
    return Cell(verdict, told, subject.single)


def _tables(rows, strengths: Sequence[float], subject: Subject) -> dict[float, np.ndarray]:
    """Returns values by strength: [trainings, prompts], prompts in one order."""
    means = {
        s: [ev.prompt_means(some, subject.reward) for (at, _), some in sorted(rows.items()) if at == s]
        for s in strengths
    }
    prompts = sorted(set.intersection(*({*each} for some in means.values() for each in some)), key=str)
    return {s: np.array([[each[p] for p in prompts] for each in some]) for s, some in means.items()}


def quality(way: str):
    """Returns the question whether one way loses what nobody paid for, from λ = 0 to its largest up to 2."""

    def ask(subject: Subject) -> Cell:
        found = subject.evidence
        rows = getattr(found, way)
        top = max((s for s, _ in rows if s <= 2), default=0.0)
        if top <= 1 or not subject.quality:
            return nothing("no strength above 1")
        if not subject.moved:
            return nothing(UNMOVED)
        lines, verdicts, single = [], [], False
        for name, quantity in subject.quality.items():
            moved = change(rows, quantity, ev.rows_at(found.dera, 0.0), top)
            verdicts.append(fall(moved.estimate, SLIGHT.get(name, 0.0)))
            lines.append(f"{name} {show(moved.estimate)}: {verdicts[-1]}")
            single |= moved.single
        verdict = AGREES if AGREES in verdicts else DISAGREES if {*verdicts} == {DISAGREES} else UNDECIDED
        return Cell(verdict, f"from λ = 0 to {top:g}: " + "; ".join(lines), single)

    return ask


def choice(subject: Subject) -> Cell:
    """Whether the model retrained at the strength that DeRa chooses is about as good as the best retrained one."""
    found = subject.evidence
    best = chosen(subject)
    if best is None or not subject.moved:
        return nothing(NO_CHOICE if best is None else UNMOVED)
    first, second = (ev.half(found.retrained, which) for which in (0, 1))
    means = ev.curve(first, subject.objective)
    really = max((s for s in means if s), key=lambda s: means[s].mean)
    margin = SHARE_OF_RANGE * range_of(found, subject.objective)
    told = f"by {subject.told} DeRa chooses λ = {best:g}"
    if really == best:
        return Cell(AGREES, f"{told}, and so do retrained models", subject.single)
    lost = between(second, subject.objective, really, best)
    verdict = (
        AGREES if lost.estimate.high < margin else DISAGREES if lost.estimate.low > margin else UNDECIDED
    )
    return Cell(
        verdict,
        f"{told}, retrained models {really:g}, which is better by {show(lost.estimate)} on other prompts, margin "
        f"{margin:.3f}",
        lost.single,
    )


def improvement(subject: Subject) -> Cell:
    """Whether the model retrained at DeRa's choice is better than the aligned one, on other prompts."""
    found = subject.evidence
    best = chosen(subject)
    if best is None or not subject.moved:
        return nothing(NO_CHOICE if best is None else UNMOVED)
    if best == 1:
        return nothing(f"by {subject.told} DeRa chooses λ = 1: nothing to retrain")
    predicted, gained = (
        between(ev.half(rows, 1), subject.objective, best, 1.0) for rows in (found.dera, found.retrained)
    )
    return Cell(
        rise(gained.estimate),
        f"at the chosen λ = {best:g} {subject.told} is {show(gained.estimate)} above that at 1 by retraining, and "
        f"{show(predicted.estimate)} by DeRa",
        gained.single,
    )


def incoherence(subject: Subject) -> Cell:
    """Whether text falls apart far beyond λ = 1."""
    dera = subject.evidence.dera
    top = max((s for s, _ in dera), default=0.0)
    if top < 5:
        return nothing("no strength of 5 or more")
    named = {name: subject.quality[name] for name in qu.COHERENCE if name in subject.quality}
    if not named:
        return nothing("no measure of it")
    lines, verdicts, single = [], [], False
    for name, quantity in named.items():
        moved = change(dera, quantity, ev.rows_at(dera, 1.0), top)
        verdicts.append(fall(moved.estimate, SLIGHT[name]))
        lines.append(f"{name} {show(moved.estimate)}")
        single |= moved.single
    verdict = verdicts[0] if len({*verdicts}) == 1 else UNDECIDED
    return Cell(verdict, f"from λ = 1 to {top:g}: " + ", ".join(lines), single)


def over_weights(side: str, equal: bool = False):
    """Returns the question whether mixed logits are better than mixed weights on one side of 1, or `equal` to them."""

    def ask(subject: Subject) -> Cell:
        found = subject.evidence
        low, high = SIDES[side]
        both = {s for s, _ in found.combined} & {s for s, _ in found.dera}
        strengths = sorted(s for s in both if low < s < high and s != 1)
        if not strengths:
            return nothing("no weights combined there")
        if not subject.moved:
            return nothing(UNMOVED)
        pair = ev.Evidence(found.experiment, _first(found.dera), found.combined, {}, [])
        moved = gap(pair, subject.objective, strengths).estimate
        margin = (1 if equal else 0.2) * SHARE_OF_RANGE * range_of(found, subject.objective)
        # Both are of one training: what another would change is not known, and is told so.
        return Cell(
            equivalence(moved, margin) if equal else rise(moved, margin),
            f"{subject.told}: logits less weights {show(moved)}, margin {margin:.3f}",
            True,
        )

    return ask


def _first(rows) -> dict:
    return {at: some for at, some in rows.items() if at[1] == 0}


def accuracy(subject: Subject) -> Cell:
    """Whether both ways prefer the same answers of the pairs (Eq. 14) up to λ = 1."""
    found = subject.evidence.accuracies
    if not {"DeRa", "retrained"} <= found.keys():
        return nothing("no pairs")
    small = [s for s in found["retrained"] if s in found["DeRa"] and s < 1]
    if not small:
        return nothing(NOT_BOTH)
    if not subject.moved:
        return nothing(UNMOVED)
    gaps = [found["DeRa"][s].mean - found["retrained"][s].mean for s in small]
    # Of the same pairs, so that the intervals of both are rather too wide for the difference.
    half = math.hypot(*(each[small[0]].half_width for each in found.values())) / math.sqrt(2)
    mean = float(np.mean(gaps))
    estimate = Estimate(mean, mean - half, mean + half)
    return Cell(equivalence(estimate, ACCURACY), f"{show(estimate)}, margin {ACCURACY}", True)
