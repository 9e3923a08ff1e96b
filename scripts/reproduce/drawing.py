"""The figures of REPRODUCTION.md: one for each group of claims, a panel for each experiment, captions from the rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.reproduce import evidence as ev
from scripts.reproduce import figures
from scripts.reproduce import quantities as qu
from scripts.reproduce.certificates import optimum_curve
from scripts.reproduce.decomposition import PARTS, Parts
from scripts.reproduce.questions import compared
from scripts.reproduce.spread import gap
from scripts.reproduce.subjects import Subject
from scripts.reproduce.verdicts import CANNOT, Cell, tally

Matrix = Mapping[str, Mapping[str, Cell]]
UNITS = {
    "likelihood": "likelihood (nats per token)",
    "known words": "known words (share)",
    "variety": "variety (share of pairs)",
    "slots": "slots said (share)",
    "BLEU of a text": "BLEU of a text",
}
"""Of what nobody paid for."""
SHOWN = (0.0, 0.5, 1.0, 2.0)
"""Strengths of the histograms."""
FAR = 5.0
"""Reward and likelihood beyond are so low that nothing else could be seen."""
BARS = "Bars: 95 % intervals over prompts; lines: means of all trainings; small points: single trainings."


@dataclass(frozen=True)
class Drawn:
    """A figure."""

    title: str
    path: str
    """From REPRODUCTION.md."""
    caption: str
    """What it shows, and what was found."""


def draw_all(
    subjects: Sequence[Subject], matrix: Matrix, taken_apart: Mapping[str, Sequence[Parts]], results: Path
) -> list[Drawn]:
    """Writes all figures of experiments whose alignment moved their reward."""
    moved = [subject for subject in subjects if subject.moved]
    retrained = [subject for subject in moved if subject.evidence.experiment.retrained]
    known = [subject for subject in retrained if taken_apart.get(subject.name)]
    preferred = [subject for subject in retrained if subject.evidence.accuracies]
    combined = [subject for subject in moved if len(subject.evidence.combined) > 2]
    # Those with as many qualities follow each other, so that each row of panels is of one experiment.
    several = sorted(
        (each for each in known if each.evidence.experiment.num_seeds > 1),
        key=lambda each: -len(each.quality),
    )
    wide = [
        each for each in subjects if qu.COHERENCE[0] in each.quality and max(each.evidence.dera)[0] >= FAR
    ]
    wanted = (
        ("Reward", "reward", _rewards, retrained, ("reward, λ < 1", "reward, 1 < λ ≤ 2", "reward, λ > 2")),
        ("KL divergence from the reference", "kl", _divergences, retrained, ("KL, λ < 1", "KL, 1 < λ ≤ 2")),
        ("Lengths", "lengths", _lengths, known, ("length, λ < 1", "length, 1 < λ ≤ 2")),
        ("Qualities without a reward", "quality", _qualities, several,
         ("quality falls, DeRa", "quality falls, retrained")),
        ("Text at large strengths", "coherence", _coherence, wide, ("text falls apart",)),
        ("Choosing a strength", "choice", _objectives, preferred, ("choice of strength",)),
        ("Pair accuracy (Eq. 14)", "accuracy", _accuracies, preferred, ("pair accuracy, λ < 1",)),
        ("Logits against weights", "weights", _weights, combined,
         ("logits and weights, λ < 1", "logits over weights, 1 < λ ≤ 2", "logits over weights, λ > 2")),
    )  # fmt: skip
    drawn = []
    for title, name, panels, some, claims in wanted:
        if some:
            path = f"figures/{name}.png"
            told, several = panels(some)
            columns = 3 if len(several) > 8 else max(2, min(4, len(several)))
            figures.save(results / path, several, _counts(some), columns)
            drawn.append(Drawn(title, path, f"{told} {findings(some, matrix, claims)} {BARS}"))
    if known:
        drawn.insert(2, _gaps(known, taken_apart, results))
        _headline(known[0], results)
    return drawn


def _headline(subject: Subject, results: Path) -> None:
    """Writes one experiment alone: reward, KL and lengths."""
    several = [make([subject])[1][0][1] for make in (_rewards, _divergences, _lengths)]
    titles = ("(a) mean reward", "(b) KL to the reference", "(c) lengths")
    figures.save(
        results / f"figures/{subject.name}.png", list(zip(titles, several, strict=True)), _counts([subject])
    )


def findings(subjects: Sequence[Subject], matrix: Matrix, claims: Sequence[str]) -> str:
    """Returns how many experiments of a figure agree with some claims; which ones stands in the matrix."""
    told = []
    for claim in claims:
        verdicts = [matrix[s.name][claim].verdict for s in subjects if claim in matrix.get(s.name, {})]
        if any(verdict != CANNOT for verdict in verdicts):
            told.append(f"**{claim}**: {tally(verdicts)}")
    return f"Of the experiments shown: {'; '.join(told)}." if told else ""


def _counts(subjects: Sequence[Subject]) -> str:
    rows = [len(some) for subject in subjects for some in subject.evidence.dera.values()]
    counts = f"{min(rows):,}" + (f" to {max(rows):,}" if max(rows) > min(rows) else "")
    return f"{counts} completions at each strength of each training"


def _rewards(subjects: Sequence[Subject]):
    def panel(subject: Subject) -> figures.Draw:
        best = optimum_curve(subject, "reward")
        return figures.ways(
            subject.evidence, subject.reward, "mean reward", weighted=True, optimum=best, far=FAR
        )

    told = (
        "Mean reward over λ: DeRa, models retrained at β/λ, DeRa's completions weighted to Eq. 5, and the optimum of "
        "β/λ, which is known for rewards of lengths (dashed)."
    )
    return " ".join([told, *_beyond(subjects)]), _each(subjects, panel)


def _beyond(subjects: Sequence[Subject]) -> list[str]:
    """Returns the mean rewards at strengths that are not drawn, which verdicts count too."""
    told = []
    for subject in subjects:
        ways = {"DeRa": subject.evidence.dera, "retrained": subject.evidence.retrained}
        for strength in (s for s in compared(subject, "λ > 2") if s > FAR):
            means = {
                name: ev.mean(ev.rows_at(rows, strength), subject.reward).mean for name, rows in ways.items()
            }
            shown = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
            told.append(f"{subject.name} at λ = {strength:g}: {shown}")
    return [f"Not drawn, and part of the verdicts: {'; '.join(told)}."] if told else []


def _divergences(subjects: Sequence[Subject]):
    def panel(subject: Subject) -> figures.Draw:
        return figures.ways(subject.evidence, qu.kl, "nats", optimum=optimum_curve(subject, "kl"), log=True)

    told = "KL divergence from the reference over λ, on a logarithmic scale."
    return " ".join([told, *_ratios(subjects)]), _each(subjects, panel)


def _ratios(subjects: Sequence[Subject]) -> list[str]:
    """Returns on which side DeRa is nearer to the reference than retrained models, and by how much."""
    told = []
    for side, words in (("λ < 1", "below λ = 1"), ("1 < λ ≤ 2", "from 1 to 2")):
        found = [(each, some) for each in subjects if (some := compared(each, side))]
        times = [math.exp(gap(each.evidence, qu.kl, some, ratio=True).estimate.mean) for each, some in found]
        if times:
            told.append(f"{np.median(times):.2f} {words} ({min(times):.2f} to {max(times):.2f})")
    if not told:
        return []
    return [
        "DeRa's as a multiple of that of retrained models, in the median experiment (and from the least to the "
        f"largest): {', '.join(told)}."
    ]


def _lengths(subjects: Sequence[Subject]):
    def panel(subject: Subject) -> figures.Draw:
        found = subject.evidence
        both = {
            name: {s: ev.rows_at(rows, s) for s in SHOWN if (s, 0) in rows}
            for name, rows in (("DeRa", found.dera), ("retrained", found.retrained))
        }
        rows = [row for some in both["DeRa"].values() for row in some]
        return figures.outlines(both, figures.rewarded(rows, subject.reward))

    told = "Lengths of completions by DeRa and by retrained models; yellow: lengths that have the reward."
    return told, _each(subjects, panel)


def _qualities(subjects: Sequence[Subject]):
    panels = [
        (subject.name, figures.ways(subject.evidence, quantity, UNITS[name]))
        for subject in subjects
        for name, quantity in subject.quality.items()
    ]
    return (
        "What the reward does not ask for, over λ, where there are several trainings. Each panel has a scale of its "
        "own: most changes are small.",
        panels,
    )


def _coherence(subjects: Sequence[Subject]):
    panels = [
        (subject.name, figures.ways(subject.evidence, subject.quality[name], UNITS[name]))
        for name in qu.COHERENCE
        for subject in subjects
        if name in subject.quality
    ]
    told = (
        "Log-probability of a text's tokens under the untouched model, and share of its words that the stories of the "
        "training have, to the largest λ."
    )
    return told, panels


def _objectives(subjects: Sequence[Subject]):
    def panel(subject: Subject) -> figures.Draw:
        return figures.ways(subject.evidence, subject.objective, subject.told, far=FAR)

    return f"What a strength is chosen by, over λ (to {FAR:g}; beyond, texts fall apart).", _each(
        subjects, panel
    )


def _accuracies(subjects: Sequence[Subject]):
    told = "Share of held-out pairs whose better text each way prefers."
    return told, _each(subjects, lambda subject: figures.accuracies(subject.evidence))


def _weights(subjects: Sequence[Subject]):
    def panel(subject: Subject) -> figures.Draw:
        return figures.ways(subject.evidence, subject.objective, subject.told, combined=True, far=FAR)

    told = "The objective over λ where logits are mixed (DeRa), where weights are, and by retraining."
    return told, _each(subjects, panel)


def _each(subjects: Sequence[Subject], panel: Callable[[Subject], figures.Draw]):
    return [(subject.name, panel(subject)) for subject in subjects]


def _gaps(subjects: Sequence[Subject], taken_apart: Mapping[str, Sequence[Parts]], results: Path) -> Drawn:
    """Writes the stacked bars of the decomposition."""
    path = "figures/gap.png"
    panels = [
        (f"{subject.name}: {quantity}", figures.stacked(taken_apart[subject.name], quantity))
        for quantity in ("reward", "KL")
        for subject in subjects
    ]
    figures.save(
        results / path,
        panels,
        "points: DeRa − retrained with its 95 % interval",
        3 if len(subjects) > 4 else len(subjects),
    )
    means = {
        part: [
            each.parts("reward")[part]
            for name in taken_apart
            for each in taken_apart[name]
            if each.strength <= 2
        ]
        for part in PARTS
    }
    ranges = "; ".join(f"{part} {min(some):+.3f} to {max(some):+.3f}" for part, some in means.items() if some)
    caption = (
        "DeRa − retrained as the sum of three parts: mixing token by token instead of whole responses; the distance of "
        "the mixture of responses (Eq. 5) from the optimum of β/λ; and that of the retrained model, with the opposite "
        f"sign. Of the reward: {ranges}. Where the two training errors are large they nearly cancel; what is left is "
        "the gap."
    )
    return Drawn("The gap taken apart", path, caption)
