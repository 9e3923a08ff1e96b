"""Requests whose candidates have rows of a batch: what each goes on from, and what was looked at so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.device_loop import Drawn
from dera_jax.decoding.endings import Endings
from dera_jax.decoding.request import Request
from dera_jax.search.candidates import Candidate
from dera_jax.search.scores import Decode


class Choosing(Protocol):
    """What a batch asks of a search."""

    trace: bool

    @property
    def width(self) -> int:
        """Rows of a request."""

    @property
    def children(self) -> int:
        """Rows that go on from one branch."""

    @property
    def steps(self) -> int:
        """Tokens of a roll-out."""

    @property
    def emitted(self) -> int:
        """Tokens of it that are kept of a candidate that is chosen; at most `steps`."""

    @property
    def shrinks(self) -> bool:
        """Whether rows that nothing goes on in are not needed any more."""

    @property
    def ranked(self) -> bool:
        """Whether a branch's rows begin with its most probable tokens, in order, and go on greedily."""

    def score_all(self, candidates: Sequence[Candidate], decode: Decode) -> np.ndarray:
        """Returns the scores, in the columns, of candidates of any requests."""

    def survivors(
        self, scores: np.ndarray, ended: np.ndarray, request: Request, config: DecodeConfig, number: int
    ) -> list[int]:
        """Returns which candidates of a request are kept in its decision of this number, the best first."""

    def total(self, scores: np.ndarray) -> np.ndarray:
        """Returns one number for each candidate."""


@dataclass
class Branch:
    """What has been kept so far."""

    tokens: list[int] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    """Their figures, in pieces."""
    number: int | None = None
    """That its last candidate had in its decision."""
    log_weight: float = 0.0
    """Of a particle, since it was last drawn again."""
    ancestor: int | None = None
    """Of a particle, the row that it began in."""


@dataclass
class Group:
    """A request at work."""

    request: Request
    endings: Endings
    rows: list[int | None]
    """None: given to another."""
    branches: list[Branch | None]
    """That each row goes on from; None: the row is idle."""
    ended: list[Candidate] = field(default_factory=list)
    """Kept candidates that have ended."""
    decisions: int = 0
    candidates: int = 0
    tokens: int = 0
    passes: int = 0
    trace: list[list[dict]] = field(default_factory=list)


@dataclass
class Place:
    """A row of a group."""

    group: Group
    number: int
    request: Request
    """The group's, as an attempt of the row's own."""

    @property
    def branch(self) -> Branch | None:
        """What the row goes on from."""
        return self.group.branches[self.number]

    @property
    def tokens(self) -> list[int]:
        """Those in the row's caches behind the prompt."""
        return self.branch.tokens if self.branch else []
