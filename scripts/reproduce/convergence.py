"""How near trainings come to their optimum with many steps, where the average of the parameters is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from dera_jax.analysis.estimates import Estimate, estimate_from_json
from dera_jax.common.files import read_bytes
from dera_jax.common.json_files import read_json
from dera_jax.experiments.declare import Step
from scripts.reproduce import figures
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.runner import Folders, is_kept
from scripts.reproduce.settings import CONVERGED, LINE, PARAGRAPH, SENTENCE
from scripts.reproduce.subjects import show

NAME = "convergence"
BETA = 0.5
LONG = CONVERGED | {
    "beta": BETA, "seed": 0, "max_steps": 400, "lr_scheduler_type": "constant", "ema_decay": 0.98,
    "certificate_samples": 32,
}  # fmt: skip
"""The rate does not fall: the average of the parameters takes the place of that."""
GOAL = 0.1
"""Nats from the optimum."""
WINDOW = 20
"""Steps whose completions make a point of a curve."""


def trainings(recipes: Recipes) -> list[Step]:
    """Returns the trainings, PPO with little gradient noise on both models."""
    stories = {"model": recipes.stories, "data": recipes.openings / "train.jsonl", "stop": LINE}
    e2e = {"model": recipes.t5(), "data": recipes.e2e / "prompts.jsonl", "learning_rate": 1e-4}
    return [
        Step("train.rlhf", f"{NAME}/stories", stories | {"reward": PARAGRAPH} | LONG),
        Step("train.rlhf", f"{NAME}/e2e", {"reward": SENTENCE} | LONG | e2e),
    ]


@dataclass(frozen=True)
class Course:
    """A training."""

    name: str
    distance: Estimate
    """KL to the optimum of the model that was kept, nats."""
    share: Estimate
    """Of what its objective could gain, how much it did."""
    steps: np.ndarray
    distances: np.ndarray
    """The same of the policy that draws, means of `WINDOW` steps that end there."""


def section(steps: Sequence[Step], folders: Folders) -> list[str]:
    """Writes the figure; returns the section of the page, nothing if no training is there."""
    courses = [course_of(step, folders) for step in steps if is_kept(step, folders)]
    if not courses:
        return []
    panels = [(course.name, _curve(course)) for course in courses]
    note = "bars: 95 % intervals over prompts"
    figures.save(folders.results / "figures" / f"{NAME}.png", panels, note, 2)
    return [
        "## Many steps, and the average of the parameters\n",
        f"![KL to the optimum over steps](figures/{NAME}.png)\n",
        f"The training of `stories-converged` at β = {BETA:g}, for {steps[0].options['max_steps']} steps at a constant "
        "rate. Curve: the policy that draws the completions of each step, which noise moves about. Point: the model "
        f"that is kept, the average of its parameters over the last steps. {' '.join(map(told, courses))}\n",
    ]


def course_of(step: Step, folders: Folders) -> Course:
    """Returns what is kept of a training."""
    kept = folders.results / step.folder
    certificate = read_json(kept / "manifest.json")["certificate"]
    rows = [json.loads(line) for line in read_bytes(kept / "metrics.jsonl.xz").splitlines()]
    beta = certificate["beta"]
    objective = np.array([row["reward"] - beta * row["kl"] for row in rows])
    distances = (certificate["best"]["mean"] - objective) / beta
    window = min(WINDOW, len(rows))
    means = np.convolve(distances, np.full(window, 1 / window), "valid")
    ends = np.arange(window, len(rows) + 1)
    of_kept = (estimate_from_json(certificate[name]) for name in ("distance", "share"))
    return Course(step.folder.rpartition("/")[2], *of_kept, ends, means)


def told(course: Course) -> str:
    """Returns a training's result in words.

    >>> distance, share = Estimate(0.12, 0.08, 0.16), Estimate(0.7, 0.6, 0.8)
    >>> told(Course("stories", distance, share, np.array([20]), np.array([0.41])))
    'stories: 0.12 [0.08, 0.16] nats, 70% [60%, 80%] of what can be gained; the last policy: 0.41 nats.'
    """
    share = course.share
    return (
        f"{course.name}: {show(course.distance, 2)} nats, {share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of what "
        f"can be gained; the last policy: {course.distances[-1]:.2f} nats."
    )


def _curve(course: Course) -> figures.Draw:
    def draw(ax: Axes) -> None:
        ax.plot(course.steps, course.distances, color=figures.COLORS[1], label="policy that draws")
        found = course.distance
        spread = [[found.mean - found.low], [found.high - found.mean]]
        ax.errorbar(
            course.steps[-1:], [found.mean], spread, color=figures.COLORS[0], marker="o", markersize=4,
            linestyle="none", elinewidth=0.8, capsize=1.5, label="average, kept",
        )  # fmt: skip
        ax.axhline(GOAL, color="black", linestyle="--", linewidth=0.7, label=f"{GOAL:g} nats")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("steps of training")
        ax.set_ylabel("KL to the optimum (nats)")

    return draw
