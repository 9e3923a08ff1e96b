"""The paper's twelve claims, each tested on our rows: what was found, and whether it holds.

Those of agreement with retrained models are in `agreement`.
"""

from collections.abc import Callable

import numpy as np

from scripts.reproduce import agreement
from scripts.reproduce import evidence as ev
from scripts.reproduce.subjects import (
    FAILS,
    HOLDS,
    OPEN,
    Subject,
    Verdict,
    chosen,
    difference,
    show,
    tell_sides,
    together,
)


def hacking(subjects: list[Subject]) -> Verdict:
    """Claim 3: more of the reward costs quality."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        for name, quantity in subject.quality.items():
            for way, rows in (("DeRa", found.dera), ("retrained", found.retrained)):
                top = max((s for s, _ in rows), default=0.0)
                if top <= 1:
                    continue
                change = difference(ev.rows_at(rows, top), ev.rows_at(found.dera, 0.0), quantity)
                lines.append(f"{subject.name}: {name} from λ = 0 to {top:g}, {way} {show(change)}")
                good.append(change.high < 0)
    return Verdict(
        3,
        "More of the length reward costs quality",
        "Fig. 5: win rate .50 → .24–.28",
        lines,
        together(good),
        holds_if="each quality falls from λ = 0 to the largest, by its interval",
    )


def better_strengths(subjects: list[Subject]) -> Verdict:
    """Claim 4: DeRa finds strengths better than the base β, and the direction is right in both cases."""
    lines, directions = [], {"over-regularized": False, "under-regularized": False}
    for subject in subjects:
        best = chosen(subject)
        if best is None:
            continue
        if best == 1:
            lines.append(f"{subject.name} ({subject.told}): best at λ = 1, the base β")
            continue
        dera, retrained = (ev.half(rows, 1) for rows in (subject.evidence.dera, subject.evidence.retrained))
        base = ev.rows_at(dera, 1.0)
        predicted = difference(ev.rows_at(dera, best), base, subject.objective)
        confirmed = difference(ev.rows_at(retrained, best), base, subject.objective)
        kind = "over-regularized" if best > 1 else "under-regularized"
        sure = predicted.low > 0 and confirmed.low > 0
        directions[kind] |= sure
        lines.append(
            f"{subject.name} ({subject.told}): chosen λ = {best:g}, base {kind}; against λ = 1 on other prompts DeRa "
            f"{show(predicted)}, retrained {show(confirmed)}: {'confirmed' if sure else 'not confirmed'}"
        )
    verdict = together(list(directions.values())) if lines else OPEN
    return Verdict(
        4,
        "DeRa finds strengths better than the base β: above 1 if over-regularized, below if under-regularized",
        "Fig. 3: 2 against 5 retrained; Fig. 7: .5 for both",
        lines,
        verdict,
        holds_if="both directions are found, each confirmed by retraining on prompts that had no part in the choice",
    )


def incoherence(subjects: list[Subject]) -> Verdict:
    """Claim 7: at very large λ text loses coherence."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        if (top := max((s for s, _ in found.dera), default=0.0)) < 5:
            continue
        for name in ("likelihood", "known words"):
            if quantity := subject.quality.get(name):
                change = difference(ev.rows_at(found.dera, top), ev.rows_at(found.dera, 1.0), quantity)
                lines.append(f"{subject.name}: {name} from λ = 1 to {top:g} {show(change)}")
                good.append(change.high < 0)
    return Verdict(
        7,
        "At very large λ text loses coherence",
        "Fig. 1, 4: texts at λ = 10 and 100",
        lines,
        together(good),
        holds_if="each falls from λ = 1 to the largest, by its interval",
    )


def logits_beat_weights(subjects: list[Subject]) -> Verdict:
    """Claim 8: mixing logits beats mixing weights, most of all in extrapolation."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        strengths = sorted({s for s, _ in found.combined} & {s for s, _ in found.dera} - {0.0, 1.0})
        if not strengths:
            continue
        gains = {s: difference(found.dera[s, 0], found.combined[s, 0], subject.objective) for s in strengths}
        top = max(strengths)
        lines.append(
            f"{subject.name} ({subject.told}): logits less weights "
            + tell_sides({s: gain.mean for s, gain in gains.items()}, "+.3f")
            + f"; at λ = {top:g} {show(gains[top])}"
        )
        good.append(gains[top].low > 0)
    return Verdict(
        8,
        "Mixing logits beats mixing weights, most of all in extrapolation",
        "Fig. 8: 7.03 against 5.63 at λ = 2",
        lines,
        together(good),
        holds_if="logits are better at the largest λ, by the interval",
    )


def twice_the_cost(cost: dict | None) -> Verdict:
    """Claim 11: twice the decoding time and memory."""
    lines, verdict = [], OPEN
    if cost:
        ratio, sizes = cost["ratio"], cost["parameter_bytes"]
        memory = sizes["pair"] / sizes["one"]
        lines = [
            f"time per token, pair against one model: {ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}); "
            f"parameters {memory:.2f} times; {cost['rows']} rows of stories260K, {cost['device']}"
        ]
        verdict = HOLDS if 1.5 < ratio["median"] < 2.5 and 1.9 < memory < 2.1 else FAILS
    return Verdict(
        11,
        "Twice the decoding time and memory",
        "stated, never measured",
        lines,
        verdict,
        holds_if="1.5 to 2.5 times the time, 1.9 to 2.1 times the parameters",
    )


def strength_per_prompt(own: ev.Rows, fixed: dict[float, ev.Rows]) -> Verdict:
    """Claim 12: a strength for every user, prompt or task."""
    lines, verdict = [], OPEN
    if own:
        known = {(row["prompt_id"], row["sample"], s): row for s, rows in fixed.items() for row in rows}
        pairs = [(row, known.get((row["prompt_id"], row["sample"], row["lambda"]))) for row in own]
        same = [all(row[f] == other[f] for f in ("completion", "length")) for row, other in pairs if other]
        lines = [
            f"{len({row['lambda'] for row in own})} strengths in one batch, one a prompt: {sum(same)} of {len(same)} "
            "completions are those of a batch of that strength, letter for letter"
        ]
        verdict = HOLDS if same and np.mean(same) > 0.999 else FAILS
    return Verdict(
        12,
        "Strength per user, prompt or task",
        "stated, never shown",
        lines,
        verdict,
        holds_if="more than 99.9 % are equal",
    )


OF_SUBJECTS: tuple[Callable[[list[Subject]], Verdict], ...] = (
    agreement.reward_rises,
    agreement.lengths_agree,
    hacking,
    better_strengths,
    agreement.beyond_one,
    agreement.accuracy_is_a_poor_proxy,
    incoherence,
    logits_beat_weights,
    agreement.retrained_as_predicted,
    agreement.any_alignment,
)
"""Claims 1 to 10."""
