"""The same experiments at toy size: every command runs, nothing is learned."""

from dataclasses import replace
from typing import Any

from dera_jax.experiments import Experiment, Place, Step

TRAINING = {
    "max_steps": 2,
    "num_train_epochs": None,
    "batch_size": 8,
    "num_samples": 2,
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "max_length": 96,
}
SWEEP = {"num_prompts": 12, "num_samples": 2, "max_new_tokens": 24}


def shrink(experiment: Experiment) -> Experiment:
    """Returns an experiment with a few steps, prompts and strengths."""
    retrained = tuple(s for s in experiment.retrained if s in (0.5, 2.0))
    return replace(
        experiment,
        reference=shrink_step(experiment.reference),
        training=shrink_step(experiment.training),
        strengths=tuple(s for s in experiment.strengths if s in (0.0, 0.5, 1.0, 2.0)),
        retrained=retrained,
        repeated=tuple(s for s in experiment.repeated if s in (1.0, *retrained)),
        num_seeds=min(experiment.num_seeds, 2),
        combined=tuple(s for s in experiment.combined if s == 2.0),
        pairs=shrink_step(experiment.pairs),
        decoding={name: shrink_step(value) for name, value in (experiment.decoding | SWEEP).items()},
    )


def shrink_step(value: Any) -> Any:
    """Returns a step, or an option's value that may hold some, with toy sizes."""
    if isinstance(value, (tuple, list)):
        return tuple(map(shrink_step, value))
    if isinstance(value, Place):
        return replace(value, step=shrink_step(value.step))
    if not isinstance(value, Step):
        return value
    sizes = {"train": TRAINING, "eval": SWEEP}.get(value.command.partition(".")[0], {})
    options = {name: sizes.get(name, shrink_step(each)) for name, each in value.options.items()}
    if value.command.startswith("train."):
        options["max_steps"] = TRAINING["max_steps"]
    return replace(value, options=options)
