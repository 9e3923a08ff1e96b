"""How the gap depends on the length of training: one experiment again with fewer and with more steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from dera_jax.experiments.declare import Experiment
from scripts.reproduce import figures
from scripts.reproduce.certificates import Certificate, certificates
from scripts.reproduce.decomposition import Parts, decompose
from scripts.reproduce.subjects import Subject, show

NAME = "training-length"
STEPS = (60, 240, 480)
"""Beside those of the experiment itself."""
STRENGTHS = (0.5, 2.0)
"""Retrained too, each once."""


def of_lengths(experiment: Experiment) -> dict[int, Experiment]:
    """Returns an experiment with other numbers of steps, by that number; its λ = 0 serves all."""
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
