"""Who drafts tokens, and when it pays: what plain chunks tell of each drafter, and what its own chunks took."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dera_jax.decoding.room import CHUNK

NGRAM = None
"""As a drafter's number: no model, but what followed the last tokens before."""
LEAST_GAIN = 1.05
"""In tokens per second, below which nothing is drafted."""
TRIAL = 0.04
"""Of the time that is left, what trying a drafter may take at most."""


def expected_tokens(acceptance: float, length: int) -> float:
    """Returns the tokens of a pass, Σ_{j=0..γ} αʲ, where each of γ drafts is kept with probability α."""
    return float(sum(acceptance**kept for kept in range(length + 1)))


def acceptance_bounds(logprobs: np.ndarray, drafter_logprobs: np.ndarray) -> tuple[float, float]:
    """Returns between what shares of the drafts of a model are kept: (1 − TV)/(1 + TV) and 1 − TV, on average.

    1 − TV = E[min(1, π_draft(v)/π(v))] over the tokens v that were drawn from π; temperature and truncation, which
    bring both laws together or apart, are left out.

    Args:
      logprobs: log π of the tokens, in nats.
      drafter_logprobs: the same under the drafter.
    """
    if not len(logprobs):
        return 0.0, 1.0
    overlap = float(np.mean(np.exp(np.minimum(0.0, drafter_logprobs - logprobs))))
    return overlap / (2 - overlap), overlap


@dataclass
class Pace:
    """What chunks of one kind take."""

    first: float = math.inf
    """Seconds of the first, which compiles."""
    best: float = math.inf
    """Seconds of the shortest after it."""

    def add(self, seconds: float) -> None:
        """Notes a chunk."""
        if self.first == math.inf:
            self.first = seconds
        else:
            self.best = min(self.best, seconds)

    @property
    def known(self) -> bool:
        """Whether a chunk has been timed that compiled nothing."""
        return self.best < math.inf

    @property
    def compiling(self) -> float:
        """Seconds that the first chunk took beside running."""
        return max(0.0, self.first - self.best)


@dataclass
class Paces:
    """What chunks take, plain ones and those of each drafter, for as long as the process lives."""

    plain: Pace = field(default_factory=Pace)
    drafted: defaultdict[int | None, Pace] = field(default_factory=lambda: defaultdict(Pace))


@dataclass
class Choice:
    """Who drafts the next chunk: `auto`'s decisions, from plain chunks to the drafter that pays."""

    paces: Paces
    shares: Sequence[float]
    """Of each model: its part of a plain step's time."""
    length: int
    passes: int
    """Of a drafted chunk."""
    acceptance: dict[int | None, float] = field(default_factory=dict)
    """Of each drafter's tokens the share that is kept, lately: as plain chunks let expect, or as found."""

    def expect(self, found: Iterable[tuple[int | None, float]]) -> None:
        """Notes the shares of drafts that were kept, or would have been."""
        for drafter, share in found:
            self.acceptance[drafter] = (self.acceptance.get(drafter, share) + share) / 2

    def seconds(self, drafter: int | None) -> float:
        """Returns what a chunk of a drafter takes: before the first, as if several tokens were read like one."""
        pace = self.paces.drafted[drafter]
        steps = 1.0 if drafter is NGRAM else 1.0 + self.length * self.shares[drafter]
        return pace.best if pace.known else steps * self.passes * self.paces.plain.best / CHUNK

    def gain(self, drafter: int | None) -> float:
        """Returns how many times as many tokens a second a drafter gives as plain chunks do."""
        tokens = self.passes * expected_tokens(self.acceptance[drafter], self.length)
        return tokens / self.seconds(drafter) * self.paces.plain.best / CHUNK

    def next(self, seconds_left: float) -> tuple[bool, int | None]:
        """Returns whether the next chunk is drafted, and by whom.

        Args:
          seconds_left: that plain chunks would take for all that is still to be drawn.
        """
        if not self.paces.plain.known or not self.acceptance:
            return False, None
        for drafter in sorted(self.acceptance, key=self.gain, reverse=True):
            if self.gain(drafter) < LEAST_GAIN:
                break
            if self.paces.drafted[drafter].known or self._trial(drafter) <= TRIAL * seconds_left:
                return True, drafter
        return False, None

    def _trial(self, drafter: int | None) -> float:
        """Returns the seconds that finding out about a drafter costs: its compilation, and what does not pay."""
        begun = self.paces.drafted[drafter].first < math.inf
        return (0.0 if begun else self.paces.plain.compiling) + 2 * self.seconds(drafter)

    def may_draft(self, seconds_left: float) -> bool:
        """Whether there is time enough for any drafter: else none needs to be thought of."""
        least = 2 * self.passes * self.paces.plain.best / CHUNK
        known = any(pace.known for pace in self.paces.drafted.values())
        return self.paces.plain.known and (known or least <= TRIAL * seconds_left)
