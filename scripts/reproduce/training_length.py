"""How the gap depends on the length of training: one experiment again with fewer and with more steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from dera_jax.analysis.estimates import Estimate
from dera_jax.experiments.declare import Experiment
from scripts.reproduce import evidence as ev
from scripts.reproduce import figures
from scripts.reproduce.certificates import Certificate, certificates
from scripts.reproduce.decomposition import PARTS, Parts, decompose
from scripts.reproduce.runner import Folders
from scripts.reproduce.subjects import Subject, show

NAME = "training-length"
STEPS = (60, 240, 480)
"""Beside those of the experiment itself."""
STRENGTHS = (0.5, 2.0)
"""Retrained too, each once."""


def of_lengths(experiment: Experiment) -> dict[int, Experiment]:
    """Returns an experiment with other numbers of steps, by that number; its own λ = 0 serves them all."""
    return {steps: _with_steps(experiment, steps) for steps in STEPS}


def _with_steps(experiment: Experiment, steps: int) -> Experiment:
    training = replace(experiment.training, options={**experiment.training.options, "max_steps": steps})
    return replace(
        experiment,
        name=f"{NAME}/steps={steps}",
        training=training,
        strengths=(1.0, *STRENGTHS),
        retrained=STRENGTHS,
        repeated=(),
        num_seeds=1,
        combined=(),
    )


@dataclass(frozen=True)
class Point:
    """A number of steps."""

    certificates: Mapping[float, Certificate]
    """How far the models of each strength are from their optimum."""
    parts: Mapping[float, Parts]
    """The gap taken apart, by strength."""


def section(subject: Subject, lengths: Mapping[int, Experiment], folders: Folders) -> list[str]:
    """Writes the figure; returns the section of the page, nothing if no other length was trained.

    Args:
      subject: the experiment at its own length.
      lengths: it at others, by the number of steps.
    """
    points = points_of(subject, lengths, folders)
    if len(points) < 2:
        return []
    beta = subject.evidence.experiment.beta
    path = folders.results / "figures" / f"{NAME}.png"
    panels = [("DeRa − retrained, reward", _gaps(points)), ("KL to the optimum of β/λ", _distances(points))]
    figures.save(path, panels, "bars: 95 % intervals, of prompts alone where a model was trained once", 2)
    return [
        "## The gap over the length of training\n",
        f"![The gap over the length of training](figures/{NAME}.png)\n",
        f"{subject.name} (β = {beta:g}) with fewer and with more steps, trained from the start each time. "
        f"{' '.join(_told(points, strength) for strength in STRENGTHS)} The aligned model's "
        "distance to its optimum is "
        f"{_from_to(points, lambda point: f'{point.certificates[1.0].distance.mean:.2f} nats')}.\n",
        *table(points),
        "",
    ]


def points_of(subject: Subject, lengths: Mapping[int, Experiment], folders: Folders) -> dict[int, Point]:
    """Returns what is known of each number of steps, in increasing order."""
    found = {int(subject.evidence.experiment.training.options["max_steps"]): subject}
    start = subject.evidence.dera.get((0.0, 0), [])
    for steps, experiment in lengths.items():
        evidence = ev.read_evidence(experiment, folders)
        if not evidence.missing:
            evidence.dera[0.0, 0] = start
            found[steps] = replace(subject, evidence=evidence)
    return {steps: point for steps, each in sorted(found.items()) if (point := _point(each))}


def _point(subject: Subject) -> Point | None:
    known = {each.strength: each for each in certificates(subject)}
    parts = {each.strength: each for each in decompose(subject)}
    return Point(known, parts) if 1.0 in known and {*STRENGTHS} <= {*parts} else None


def _told(points: Mapping[int, Point], strength: float) -> str:
    def gap(point: Point) -> str:
        return f"{point.parts[strength].total['reward'].estimate.mean:+.3f}"

    return (
        f"At λ = {strength:g} the reward of DeRa less that of the retrained model is {_from_to(points, gap)}."
    )


def _from_to(points: Mapping[int, Point], show_point) -> str:
    return ", ".join(f"{show_point(point)} after {steps} steps" for steps, point in points.items())


def table(points: Mapping[int, Point]) -> list[str]:
    """Returns the lines of the table."""
    lines = [
        "| steps | λ | trainings | KL to the optimum of β/λ (nats) | share | DeRa − retrained, reward | "
        + " | ".join(PARTS)
        + " |",
        "|--:|--:|--:|--:|--:|--:|" + "--:|" * len(PARTS),
    ]
    for steps, point in points.items():
        for strength in sorted({1.0, *STRENGTHS}):
            told, parts = point.certificates[strength], point.parts.get(strength)
            gap = [show(parts.total["reward"].estimate)] if parts else ["–"]
            gap += [f"{parts.parts('reward')[part]:+.3f}" if parts else "–" for part in PARTS]
            lines.append(
                f"| {steps} | {strength:g} | {told.seeds} | {show(told.distance, 2)} | {told.share.mean:z.0%} | "
                + " | ".join(gap)
                + " |"
            )
    return lines


def _gaps(points: Mapping[int, Point]) -> figures.Draw:
    def draw(ax: Axes) -> None:
        for number, strength in enumerate(STRENGTHS):
            found = [point.parts[strength].total["reward"].estimate for point in points.values()]
            _line(ax, list(points), found, number, f"λ = {strength:g}")
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_ylabel("mean reward")

    return draw


def _distances(points: Mapping[int, Point]) -> figures.Draw:
    def draw(ax: Axes) -> None:
        for number, strength in enumerate((*STRENGTHS, 1.0)):
            found = [point.certificates[strength].distance for point in points.values()]
            _line(ax, list(points), found, number, f"λ = {strength:g}")
        ax.set_ylim(bottom=0)
        ax.set_ylabel("nats")

    return draw


def _line(ax: Axes, steps: Sequence[int], found: Sequence[Estimate], number: int, label: str) -> None:
    places = np.array(steps) * (1 + 0.02 * number)  # bars of equal steps would hide each other
    means = np.array([each.mean for each in found])
    spread = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
    ax.errorbar(
        places, means, spread, label=label, color=figures.COLORS[number], marker="o", markersize=3.5,
        elinewidth=0.8, capsize=1.5,
    )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(steps, [str(count) for count in steps])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("steps of training (logarithmic)")
