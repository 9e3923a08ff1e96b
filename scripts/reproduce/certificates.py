"""How far the trained models are from the optimum of what they were trained for, by rows that exist.

KL(π ‖ π*) = (J* − J(π))·λ/β of a model trained at β/λ, J* from the reference's completions (`analysis.optimum`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.optimum import Optimum, distance, optimum_of
from scripts.reproduce.evidence import Rows
from scripts.reproduce.subjects import Subject, show

NAME = "reward"
NEAR = 0.5
"""Nats from the optimum that count as near it; trainings that stopped early are at 3.6 and more."""


@dataclass(frozen=True)
class Certificate:
    """What is known of the models trained at one strength."""

    strength: float
    seeds: int
    distance: Estimate
    """KL to the optimum, in nats; over prompts, the seeds' completions together."""
    share: Estimate
    """Of what can be gained over the reference: (J − J_ref) / (J* − J_ref)."""


def certificates(subject: Subject) -> list[Certificate]:
    """Returns those of an experiment's models, by strength; none where the reference's completions are missing."""
    found = subject.evidence
    reference = judged(found.dera.get((0.0, 0), []), subject)
    if not reference:
        return []
    optimum = optimum_of(reference, NAME, found.experiment.beta)
    return list(_of_strengths(subject, optimum))


def nearest(subjects: Sequence[Subject]) -> dict[str, float]:
    """Returns the experiments whose aligned models are near their optimum, and how far they are from it in nats."""
    found = {
        subject.name: each.distance.mean
        for subject in subjects
        for each in certificates(subject)
        if each.strength == 1
    }
    return {name: distance for name, distance in found.items() if distance <= NEAR}


def _of_strengths(subject: Subject, optimum: Optimum) -> Iterator[Certificate]:
    found = subject.evidence
    for strength in sorted({s for s, _ in found.retrained} - {0.0}):
        seeds = [rows for (at, _), rows in found.retrained.items() if at == strength]
        rows = judged([row for rows in seeds for row in rows], subject)
        if not rows:
            continue
        beta = found.experiment.beta / strength
        told = distance(optimum, rows, NAME, strength, beta)
        yield Certificate(strength, len(seeds), told.distance, told.share)


def optimum_curve(subject: Subject, quantity: str) -> dict[float, float]:
    """Returns means of the optimum by strength, of `reward` or `kl`; none where the reward is not a length's."""
    found = subject.evidence
    reference = judged(found.dera.get((0.0, 0), []), subject) if subject.has_optimum else []
    if not reference:
        return {}
    optimum = optimum_of(reference, NAME, found.experiment.beta)
    top = max(s for s, _ in found.dera)
    return {s: optimum.at(s).figures[quantity].mean for s in np.linspace(0, top, 41).tolist()}


def judged(rows: Rows, subject: Subject) -> Rows:
    """Returns the rows that have the reward, under one name."""
    values = [(row, subject.reward(row)) for row in rows]
    return [row | {"rewards": {NAME: value}} for row, value in values if value is not None]


def certificate_lines(subjects: Sequence[Subject]) -> list[str]:
    """Returns the section of the page: aligned models; those of other strengths are on their experiments' pages."""
    lines = _lines(subjects, aligned=True)
    return [SECTION, *TABLE, *lines, ""] if lines else []


def certificates_of(subject: Subject) -> list[str]:
    """Returns the section of an experiment's page."""
    lines = _lines([subject], aligned=False)
    return ["\n## How far the models are from their optimum\n", *TABLE, *lines] if lines else []


def _lines(subjects: Sequence[Subject], aligned: bool) -> list[str]:
    return [
        f"| {subject.name} | {each.strength:g} | {subject.evidence.experiment.beta / each.strength:.3g} | {each.seeds} "
        f"| {show(each.distance, 2)} | {each.share.mean:z.0%} [{each.share.low:z.0%}, {each.share.high:z.0%}] |"
        for subject in subjects
        for each in certificates(subject)
        if each.strength == 1 or not aligned
    ]


SECTION = """
## How far the models are from their optimum

For a reward r and a KL strength s the optimum of Eq. 1 is π_ref exp(r/s)/Z, and KL(π‖π*) = (J* − J(π))/s for every
policy, with J = E[r] − s·KL: exact, from the rows of the reference (λ = 0) and the model's own. J* comes from few
completions of a prompt and is a little too small, so distances are lower bounds on average. Share: how much of what J
can gain over the reference was gained; below 0, training made it worse. Trainings at β = 0.1 gain too little reward
for the KL they spend: their gradients are noisy, and early stopping is a penalty of its own. Both models of a
comparison are stopped early there. `stories-converged` is the fairest test so far: a base β at which the optimum
still depends on λ, and trainings that come nearest to it. They are near in nats, partly because the reference is near
too; the shares say how little they gained. They were trained on the first 64 tokens, which decide the reward, and are
decoded to 128 here: what they changed further on counts against them. What the gap is with perfect training is on
[the page of the exact chain](../chain/README.md). The models of other strengths are on the pages of their
experiments.
"""
TABLE = (
    "| experiment | λ | β/λ | seeds | KL to its optimum (nats) | share |",
    "|---|--:|--:|--:|--:|--:|",
)
