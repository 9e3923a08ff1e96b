"""Words that options take. They stand here because help has to list them without JAX."""

from dataclasses import field
from typing import Any

KV_CACHES = ("auto", "bfloat16", "int8")
"""How keys and values of earlier tokens are kept; auto: in the type of the activations."""
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
"""Where a training may tell its metrics."""
QUANTIZATIONS = ("int8", "nf4")
ATTENTIONS = ("auto", "einsum", "splash", "cudnn")


def one_of(choices: tuple[str, ...], default: str) -> Any:
    """Returns a dataclass's field whose value is one of `choices`, for the options that are made from it."""
    return field(default=default, metadata={"choices": choices})
