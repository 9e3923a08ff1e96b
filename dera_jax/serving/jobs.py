"""One completion that a client waits for, and what it hears of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dera_jax.decoding.device_loop import Drawn
from dera_jax.decoding.request import Completion, Request


@dataclass(frozen=True)
class Progress:
    """More tokens, none of which ends the completion."""

    tokens: list[int]
    drawn: Drawn
    """Their figures."""


@dataclass(frozen=True)
class Finished:
    """The completion is whole."""

    completion: Completion


@dataclass(frozen=True)
class Failed:
    """There will be no completion."""

    error: Exception


Event = Progress | Finished | Failed


@dataclass(eq=False)
class Job:
    """A completion to make, for a client."""

    request: Request
    client: str
    """Those of one client wait for each other."""
    tell: Callable[[Event], None]
    """Hears of every event, on the engine's thread; Finished or Failed is the last."""
    stream: bool = False
    """Whether it hears of progress."""
    told: int = 0
    """Tokens that it has heard of."""
    reading: Iterator[None] | None = field(default=None, repr=False)
    """While its prompt is read piece by piece."""
