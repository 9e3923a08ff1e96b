"""Who drafts tokens, and when it pays: what plain chunks tell of each drafter, and what its own chunks took."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dera_jax.common.checks import check_choice, check_count

DRAFTERS = "auto", "reference", "aligned", "ngram", "none"
LONGEST_DRAFT = 64
NGRAM = None
"""As a drafter's number: no model, but what followed the last tokens before."""
LEAST_GAIN = 1.1
"""Of tokens per second that a drafter must promise to be tried."""
TRIAL = 0.04
"""Of the time that is left, what trying a drafter may take at most."""


def check_draft(draft: str, length: int) -> None:
    """Raises ValueError for a drafter that is not there, or drafts that are too short or too long."""
    check_choice("draft", draft, DRAFTERS)
    check_count("draft_length", length, most=LONGEST_DRAFT)


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
    """What chunks of one kind took and gave."""

    first: float = math.inf
    """Seconds of the first, which compiles."""
    best: float = math.inf
    """Seconds of the shortest after it."""
    tokens: float = 0.0
    """Of a row in a chunk, lately."""
    chunks: int = 0

    def add(self, seconds: float, tokens: float) -> None:
        """Notes a chunk: its seconds, and the tokens that a row at work drew on average."""
        self.tokens = tokens if not self.chunks else 0.7 * self.tokens + 0.3 * tokens
        self.chunks += 1
        if self.chunks == 1:
            self.first = seconds
        else:
            self.best = min(self.best, seconds)

    @property
    def known(self) -> bool:
        """Whether a chunk has been timed that compiled nothing."""
        return self.chunks > 1

    @property
    def rate(self) -> float:
        """Tokens of a row in a second."""
        return self.tokens / self.best

    @property
    def compiling(self) -> float:
        """Seconds that the first chunk took beside running."""
        return max(0.0, self.first - self.best)


@dataclass
class Choice:
    """Which drafter the next chunk has: `auto`'s decisions, from plain chunks to the drafter that pays."""

    weights: Sequence[float]
    """Of each model: its share of a plain step's time."""
    length: int
    passes: int
    """Of a drafted chunk."""
    plain: Pace = field(default_factory=Pace)
    drafted: dict[int | None, Pace] = field(default_factory=dict)
    refused: set[int | None] = field(default_factory=set)
    acceptance: dict[int | None, float] = field(default_factory=dict)
    """Of each drafter, as plain chunks let expect: at most."""

    def expect(self, found: Iterable[tuple[int | None, float]]) -> None:
        """Notes the shares of drafts that would have been kept."""
        for drafter, share in found:
            old = self.acceptance.get(drafter, share)
            self.acceptance[drafter] = 0.7 * old + 0.3 * share

    def promised(self, drafter: int | None) -> float:
        """Returns the gain that a drafter promises at best: several tokens read in the time of one."""
        steps = 1.0 if drafter is NGRAM else 1.0 + self.length * self.weights[drafter]
        return expected_tokens(self.acceptance[drafter], self.length) / steps

    def next(self, seconds_left: float) -> tuple[bool, int | None]:
        """Returns whether the next chunk is drafted, and by whom.

        Args:
          seconds_left: that plain chunks would take for all that is still to be drawn.
        """
        if not self.plain.known:
            return False, None
        kept = [d for d, pace in self.drafted.items() if d not in self.refused]
        for drafter in kept:
            pace = self.drafted[drafter]
            if not pace.known or pace.rate >= self.plain.rate:
                return True, drafter
            self.refused.add(drafter)
        for drafter in sorted(self.acceptance, key=self.promised, reverse=True):
            gain = self.promised(drafter)
            costs = self.plain.compiling + 2 * self.passes * self.plain.best / self.plain.tokens
            if drafter in self.refused or gain < LEAST_GAIN or costs > TRIAL * seconds_left:
                continue
            self.drafted[drafter] = Pace()
            return True, drafter
        return False, None
