"""The claims that DeRa does what retrained models do: 1, 2, 5, 6, 9 and 10 of the paper's twelve."""

import numpy as np

from scripts.reproduce import evidence as ev
from scripts.reproduce.evidence import Evidence, Quantity
from scripts.reproduce.subjects import (
    OPEN,
    Subject,
    Verdict,
    chosen,
    difference,
    ks,
    range_of,
    show,
    tell_sides,
    together,
)

CLOSE = 0.06
"""Mean |DeRa − retrained| of a reward in [−1, 0] that counts as agreement; the paper's is about 0.05."""


NO_STRENGTHS = "; no strengths to compare on both sides of 1 (not counted)"
"""Behind findings of experiments that a claim about both sides cannot be judged by."""


def reward_rises(subjects: list[Subject]) -> Verdict:
    """Claim 1: reward rises with λ for both, and the curves stay close."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        if not found.retrained or not ev.gaps(found, subject.reward):
            continue
        gap = ev.mean_gap(found, subject.reward)
        noise = ev.seed_noise(found.retrained, subject.reward)
        rank = ev.rank_correlation(found, subject.reward)
        top = max(s for s, _ in found.dera)
        rises = [
            difference(ev.rows_at(rows, top), ev.rows_at(found.dera, 0.0), subject.reward).low > 0
            for rows in (found.dera, found.retrained)
        ]
        lines.append(
            f"{subject.name}: mean gap {show(gap)}"
            + (f", two trainings apart {noise:.3f}" if noise is not None else "")
            + (f", Spearman {rank[0]:.2f} over {rank[1]} strengths" if rank else "")
            + f"; rises from λ = 0 to {top:g}: DeRa {_yes(rises[0])}, retrained {_yes(rises[1])}"
            + _weighted(found, subject.reward)
        )
        good.append(all(rises) and gap.mean <= CLOSE)
    return Verdict(
        1,
        "Reward rises with λ for DeRa and retrained models alike; the curves stay close",
        "Fig. 2a: mean gap .046, largest .149, Spearman .99",
        lines,
        together(good),
        holds_if="both rewards at the largest λ are above those at 0 by their intervals; the mean gap is at most 0.06",
    )


def _weighted(found: Evidence, reward: Quantity) -> str:
    """Returns what weighting to the sequence-level mixture does to the gap, and what the weights are worth."""
    strengths = list(ev.gaps(found, reward))
    theirs = {s: ev.mean(found.retrained[s, 0], reward).mean for s in strengths}
    plain = {s: abs(ev.mean(found.dera[s, 0], reward).mean - theirs[s]) for s in strengths}
    means = {s: ev.weighted(found.dera[s, 0], reward) for s in strengths}
    if None in means.values():
        return ""
    weighted = {s: abs(mean.mean - theirs[s]) for s, mean in means.items()}
    top = max(strengths)
    samples = max(row["sample"] for row in found.dera[top, 0]) + 1
    return (
        f"; |gap| of the first seed {tell_sides(plain, '.3f')}, weighted to Eq. 5 {tell_sides(weighted, '.3f')}: "
        f"the weights of a prompt's {samples} completions are worth {ev.worth(found.dera[top, 0]):.1f} at λ = {top:g}"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def lengths_agree(subjects: list[Subject]) -> Verdict:
    """Claim 2: length distributions agree at equal λ."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        strengths = sorted({s for s, _ in found.dera} & {s for s, _ in found.retrained} - {0.0, 1.0})
        if not strengths:
            continue
        far = {s: ks(ev.rows_at(found.dera, s), found.retrained[s, 0]) for s in strengths}
        seeds = [
            ks(a, b)
            for (s, n), a in found.retrained.items()
            for (t, m), b in found.retrained.items()
            if s == t and s > 0 and n < m
        ]
        start = ks(ev.rows_at(found.dera, 0.0), ev.rows_at(found.dera, max(strengths)))
        mean = float(np.mean(list(far.values())))
        between = f"; between seeds {np.mean(seeds):.3f}" if seeds else ""
        lines.append(
            f"{subject.name}: Kolmogorov–Smirnov distance {mean:.3f} (largest {max(far.values()):.3f} at λ = "
            f"{max(far, key=far.get):g}){between}; between λ = 0 and {max(strengths):g} {start:.3f}"
        )
        good.append(mean < 0.25 * start or (bool(seeds) and mean < 1.5 * float(np.mean(seeds))))
    return Verdict(
        2,
        "Length distributions agree at equal λ",
        "Fig. 2b, c: means within 2.3 tokens",
        lines,
        together(good),
        holds_if="the mean distance is below a quarter of that from λ = 0 to the largest, or 1.5 times the seeds'",
    )


def beyond_one(subjects: list[Subject]) -> Verdict:
    """Claim 5: agreement persists for λ > 1: to about 2, not at 5 and 10."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence
        gaps = ev.gaps(found, subject.reward)
        if not gaps:
            continue
        scale = range_of(found, subject.reward)
        far = {s: abs(gap.mean) / scale for s, gap in gaps.items()}
        below, two, beyond = (
            [gap for s, gap in far.items() if low < s <= high] for low, high in ((0, 1), (1, 2), (2, 99))
        )
        told = ((below, "λ < 1"), (two, "1 < λ ≤ 2"), (beyond, "λ > 2"))
        lines.append(
            f"{subject.name}: mean |gap| in % of the range "
            + ", ".join(f"{name} {100 * np.mean(some):.1f}" for some, name in told if some)
            + ("" if below and two else NO_STRENGTHS)
        )
        if below and two:
            good.append(
                np.mean(two) < 2 * max(np.mean(below), 0.05)
                and (not beyond or np.mean(beyond) > np.mean(two))
            )
    return Verdict(
        5,
        "Agreement persists for λ > 1 (by the paper's figures: to about 2, not at 5 and 10)",
        "Fig. 3a: .006 for λ ≤ 1, .067 above; Fig. 7a: .008, .107",
        lines,
        together(good),
        holds_if="the gap for 1 < λ ≤ 2 is less than twice that below 1 (at least 5 %), and larger beyond 2",
    )


def accuracy_is_a_poor_proxy(subjects: list[Subject]) -> Verdict:
    """Claim 6: pairwise accuracy agrees for small λ, drifts beyond 1, and rises where samples get worse."""
    lines, good = [], []
    for subject in subjects:
        found = subject.evidence.accuracies
        if not {"DeRa", "retrained"} <= found.keys():
            continue
        ours, theirs = found["DeRa"], found["retrained"]
        gaps = {s: ours[s].mean - theirs[s].mean for s in theirs if s in ours}
        small, large = ([abs(g) for s, g in gaps.items() if (s < 1) == below] for below in (True, False))
        if not gaps:
            continue
        top = max(ours)
        samples = ev.curve(subject.evidence.dera, subject.objective)
        best = max(samples, key=lambda s: samples[s].mean)
        lines.append(
            f"{subject.name}: |gap| {tell_sides({s: abs(gap) for s, gap in gaps.items()}, '.3f')}"
            f"; DeRa's accuracy {ours[best].mean:.3f} at the best samples' λ = {best:g} "
            f"and {ours[top].mean:.3f} at {top:g}" + ("" if small and large else NO_STRENGTHS)
        )
        if small and large:
            good.append(
                np.mean(small) <= np.mean(large) and (best == top or ours[top].mean >= ours[best].mean)
            )
    return Verdict(
        6,
        "Pairwise accuracy (Eq. 14) agrees for small λ, drifts beyond 1, and keeps rising where samples do not",
        "Fig. 6: gap .002 for λ ≤ 1, .022 above; .590 → .622 for λ = 2 → 10",
        lines,
        together(good),
        holds_if="the gap is no larger below 1 than above, and accuracy no lower at the largest λ than at the best",
    )


def retrained_as_predicted(subjects: list[Subject]) -> Verdict:
    """Claim 9: a model retrained at the β/λ that DeRa found behaves as DeRa predicted."""
    lines, good = [], []
    for subject in subjects:
        best, found = chosen(subject), subject.evidence
        if best is None:
            continue
        if best == 1.0:
            lines.append(
                f"{subject.name} ({subject.told}): λ = 1 is chosen, which is the base β: nothing to retrain"
            )
            continue
        dera, retrained = (ev.half(rows, 1) for rows in (found.dera, found.retrained))
        gap = difference(ev.rows_at(dera, best), ev.rows_at(retrained, best), subject.objective)
        scale = range_of(found, subject.objective)
        truth = ev.curve(retrained, subject.objective)
        really = max((s for s in truth if s), key=lambda s: truth[s].mean)
        saved = 1 - 2 / len([s for s in truth if s])
        lines.append(
            f"{subject.name} ({subject.told}): at the chosen λ = {best:g} DeRa less retrained {show(gap)}, "
            f"{100 * abs(gap.mean) / scale:.0f} % of the range; the best retrained one is at {really:g}, "
            f"{truth[really].mean - truth[best].mean:.3f} better; {100 * saved:.0f} % of the trainings saved"
        )
        good.append(abs(gap.mean) < 0.1 * scale)
    return Verdict(
        9,
        "A model retrained at the β/λ that DeRa found behaves as DeRa predicted",
        "Fig. 9: 7.23 retrained at β = .2, 7.37 by DeRa",
        lines,
        together(good),
        holds_if="the gap at the chosen λ is below a tenth of the range",
    )


def any_alignment(subjects: list[Subject]) -> Verdict:
    """Claim 10: it does not matter how the aligned model was made, nor which kind the reference is."""
    lines, good = [], []
    for subject in subjects:
        if gaps := ev.gaps(subject.evidence, subject.reward):
            scale = range_of(subject.evidence, subject.reward)
            near = [abs(g.mean) / scale for s, g in gaps.items() if s <= 2]
            lines.append(f"{subject.name}: mean |gap| for λ ≤ 2 {100 * np.mean(near):.1f} % of the range")
            good.append(np.mean(near) < 0.1)
    return Verdict(
        10,
        "It does not matter how the aligned model was made, nor which kind of model the reference is",
        "PPO, policy gradient, DPO; claimed for pretrained references, not shown",
        lines,
        together(good) if len(good) > 1 else OPEN,
        holds_if="the gap is below a tenth of the range in every experiment, of two or more",
    )
