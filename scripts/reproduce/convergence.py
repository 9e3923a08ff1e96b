"""How near trainings come to their optimum with many steps, where the average of the parameters is kept."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from dera_jax.analysis.estimates import Estimate, estimate_from_json
from dera_jax.analysis.optimum import Optimum, optimum_of
from dera_jax.common.files import read_bytes
from dera_jax.common.json_files import read_json
from dera_jax.experiments.declare import Step
from scripts.reproduce import figures
from scripts.reproduce.certificates import NAME as REWARD
from scripts.reproduce.certificates import judged
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.runner import Folders, is_kept, manifest_of
from scripts.reproduce.settings import CONVERGED, LINE, PARAGRAPH, SENTENCE
from scripts.reproduce.subjects import Subject, show

NAME = "convergence"
BETA = 0.5
LONG = CONVERGED | {
    "beta": BETA, "seed": 0, "lr_scheduler_type": "constant", "warmup_steps": 4, "ema_decay": 0.98,
    "certificate_samples": 32,
}  # fmt: skip
"""The rate does not fall: the average of the parameters takes the place of that."""
SAME = {"stories": "stories-converged-0.5", "e2e": "e2e-length-ppo"}
"""Experiments with the same reference and reward, whose completions of it tell what a policy can gain."""
GOAL = 0.1
"""Nats from the optimum."""
WINDOW = 20
"""Steps whose completions make a point of a curve."""


def trainings(recipes: Recipes) -> list[Step]:
    """Returns the trainings, PPO with little gradient noise on both models."""
    stories = {
        "model": recipes.stories,
        "data": recipes.openings / "train.jsonl",
        "reward": PARAGRAPH,
        "stop": LINE,
    }
    e2e = {"model": recipes.t5(), "data": recipes.e2e / "prompts.jsonl", "reward": SENTENCE}
    return [
        Step("train.rlhf", f"{NAME}/stories", LONG | stories | {"max_steps": 300}),
        Step("train.rlhf", f"{NAME}/e2e", LONG | e2e | {"max_steps": 140, "learning_rate": 1e-4}),
    ]


@dataclass(frozen=True)
class Course:
    """A training."""

    name: str
    distance: Estimate
    """KL to the optimum of the model that was kept, nats."""
    share: Estimate
    """Of what its objective could gain, how much it did."""
    kl: float
    """From the reference, nats."""
    gain: float
    """Of reward over the reference."""
    steps: np.ndarray
    """Where a window of `WINDOW` steps ends."""
    distances: np.ndarray
    """KL to the optimum of the policy that drew the completions of such a window, nats."""


def section(steps: Sequence[Step], subjects: Mapping[str, Subject], folders: Folders) -> list[str]:
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
        f"The training of `stories-converged` at β = {BETA:g}, at a constant rate. Curve: the policy that draws the "
        "completions of each step, which noise moves about. Point: the model that is kept, the average of the "
        "parameters over about the last 50 steps.\n",
        *(f"- {told(course, _best(course, subjects))}" for course in courses),
        "",
    ]


def _best(course: Course, subjects: Mapping[str, Subject]) -> float | None:
    """Returns how much reward the best policy of the same KL gains; None if no experiment tells."""
    subject = subjects.get(SAME.get(course.name, ""))
    rows = judged(subject.evidence.dera.get((0.0, 0), []), subject) if subject else []
    return best_gain(optimum_of(rows, REWARD, BETA), course.kl) if rows else None


def best_gain(optimum: Optimum, kl: float) -> float:
    """Returns how much reward over the reference the policy has that gains most of those `kl` nats from it.

    That is the optimum of some KL strength.
    """
    low, high = 0.0, 64.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if optimum.at(middle).figures["kl"].mean < kl else (low, middle)
    return optimum.at(low).figures["reward"].mean - optimum.at(0.0).figures["reward"].mean


def course_of(step: Step, folders: Folders) -> Course:
    """Returns what is kept of a training."""
    kept = folders.results / step.folder
    certificate = read_json(kept / manifest_of(step))["certificate"]
    rows = [json.loads(line) for line in read_bytes(kept / "metrics.jsonl.xz").splitlines()]
    beta = certificate["beta"]
    objective = np.array([row["reward"] - beta * row["kl"] for row in rows])
    distances = (certificate["best"]["mean"] - objective) / beta
    window = min(WINDOW, len(rows))
    means = np.convolve(distances, np.full(window, 1 / window), "valid")
    ends = np.arange(window, len(rows) + 1)
    found = {name: estimate_from_json(certificate[name]) for name in ("distance", "share", "reward", "kl")}
    share, own, best = found["share"].mean, certificate["objective"]["mean"], certificate["best"]["mean"]
    # The objective of the reference is its reward; a share of 1 tells nothing of it.
    of_reference = (own - share * best) / (1 - share) if share != 1 else math.nan
    return Course(
        step.folder.rpartition("/")[2], found["distance"], found["share"], found["kl"].mean,
        found["reward"].mean - of_reference, ends, means,
    )  # fmt: skip


def told(course: Course, best: float | None) -> str:
    """Returns a training's result in words.

    Args:
      best: what the best policy of the same KL gains.

    >>> distance, share = Estimate(0.12, 0.08, 0.16), Estimate(0.7, 0.6, 0.8)
    >>> course = Course("stories", distance, share, 0.3, 0.2, np.array([20]), np.array([0.41]))
    >>> told(course, 0.35).partition("; ")[0]
    '**stories**, 20 steps: 0.12 [0.08, 0.16] nats from the optimum, 70% [60%, 80%] of what can be gained'
    >>> told(course, 0.35).rpartition(". ")[2]
    'Its reward rose by 0.20 at a KL of 0.30 nats, the best policy of that KL gains 0.35.'
    """
    share = course.share
    return (
        f"**{course.name}**, {course.steps[-1]} steps: {show(course.distance, 2)} nats from the optimum, "
        f"{share.mean:z.0%} [{share.low:z.0%}, {share.high:z.0%}] of what can be gained; the policy of the last steps "
        f"{course.distances[-1]:.2f} nats. Its reward rose by {course.gain:.2f} at a KL of {course.kl:.2f} nats"
        + ("." if best is None else f", the best policy of that KL gains {best:.2f}.")
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
