"""What all searching draws have in common: a score, and the plain draw that they are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dera_jax.decoding.complete import Draw, complete
from dera_jax.search.scores import Score

MOST = 4096
"""Candidates of a request at a time."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A draw that makes several candidates for each request and yields one; subclasses say how many, and which."""

    score: Score
    plain: Draw = complete
    """Draws the candidates."""
    trace: bool = False
    """Whether completions keep every candidate of every decision (`Searched.trace`)."""

    @property
    def name(self) -> str:
        """What rows call the draw, and what `parse_draw` reads."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str | None:
        """Hash of what the score reads; the name says the rest."""
        return self.score.fingerprint

    @property
    def tries(self) -> float:
        """Completions that take as many forward passes as a request, on average."""
        raise NotImplementedError

    def check(self, prompts: Sequence, aligned: int) -> None:
        """Raises ValueError where the score cannot judge answers to the prompts, or not with so many aligned models."""
        self.score.check(prompts)
        self.score.check_models(aligned)


def check_positive(name: str, value: float, most: float = math.inf) -> None:
    """Raises ValueError unless `value` is a finite number above 0, and at most `most`."""
    if not isinstance(value, int | float) or not 0 < value <= most or math.isinf(value):
        told = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}: expected a number above 0{told}, got {value!r:.40}")
