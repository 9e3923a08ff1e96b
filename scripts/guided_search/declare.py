"""What an experiment is: prompts, and ways to decode them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Way:
    """A way to decode the prompts: options of eval.sweep."""

    name: str
    options: Mapping[str, object]
    prompts: str = "prompts"
    """Which of the experiment's files of prompts."""


@dataclass(frozen=True)
class Experiment:
    """Prompts, and ways to decode them, of which the first is what the others are held against."""

    name: str
    prompts: Mapping[str, Sequence[dict]]
    """Records, by the name of their file."""
    shared: Mapping[str, object]
    """Options of all ways."""
    ways: Sequence[Way] = field(default_factory=tuple)
