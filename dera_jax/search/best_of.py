"""Best of n and its kin: several candidates of each request, drawn from the realigned policy, and the one chosen.

  best of n            the candidate of highest score among n
  best of Poisson      the same with n = 1 + Poisson(μ), so that the price is a real number
  soft best of n       one of n candidates, with probabilities softmax(score / β)

Candidate k is the request's attempt k, so candidate 0 is the plain draw's completion. The number of candidates and the
noise of a soft choice depend on seed, prompt, turn and sample alone: strengths share them.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from dera_jax.common.checks import check_count, take_plain_numbers
from dera_jax.data.prompts import prompt_text
from dera_jax.decoding.complete import Draw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request, Searched
from dera_jax.policies.policy import Policy
from dera_jax.search.noise import gumbel, poisson, uniform
from dera_jax.search.notation import DRAWS, split_draw
from dera_jax.search.scores import Decode, Score, as_score, parse_score
from dera_jax.strengths import format_strength

MOST = 4096
"""Candidates of a request."""
LARGEST_MEAN = 1000.0
"""Of the Poisson variable: `MOST` candidates are 98 standard deviations above."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A draw that makes several candidates for each request and yields one; subclasses say how many, and which."""

    score: Score
    plain: Draw = complete
    """Draws the candidates."""

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
        """Candidates of a request on average."""
        raise NotImplementedError

    def count(self, request: Request, config: DecodeConfig) -> int:
        """Returns how many candidates a request has."""
        raise NotImplementedError

    def choose(self, scores: np.ndarray, request: Request, config: DecodeConfig) -> int:
        """Returns which candidate is taken: of the highest score the first."""
        return int(np.argmax(scores))

    def check(self, prompts: Sequence, aligned: int) -> None:
        """Raises ValueError where the score cannot judge answers to the prompts, or not with so many aligned models."""
        self.score.check(prompts)
        self.score.check_models(aligned)

    def __call__(
        self,
        policies: Sequence[Policy],
        requests: Sequence[Request],
        config: DecodeConfig,
        rows: int,
        *rest: Any,
        **named: Any,
    ) -> Iterator[Completion]:
        """Yields the chosen completion of every request as soon as all of its candidates are there.

        Args:
          rest: what the plain draw takes beside: the rule, the usage.
          named: the same by name.

        Raises:
          ScoreError: the score fails; prompt and candidates are named.
        """
        self.check([prompt_text(request.prompt.prompt) for request in requests], len(policies) - 1)
        self.score.check_policies(policies)
        decode = partial(policies[-1].tokenizer.decode, skip_special_tokens=True)
        groups = [_Candidates.of(request, self.count(request, config)) for request in requests]
        asked = [candidate for group in groups for candidate in group.asked]
        places = {id(each): (group, number) for group in groups for number, each in enumerate(group.asked)}
        for done in self.plain(policies, asked, config, rows, *rest, **named):
            group, number = places.pop(id(done.request))
            group.made[number] = done
            if len(group.made) == len(group.asked):
                yield self._chosen(group, config, decode)

    def _chosen(self, group: "_Candidates", config: DecodeConfig, decode: Decode) -> Completion:
        """Returns the candidate that is taken, with what was found, and lets go of the others."""
        made = [group.made[number] for number in range(len(group.asked))]
        group.made.clear()
        scores = np.array(self.score(made, decode))
        winner = self.choose(scores, group.request, config)
        others = np.delete(scores, winner)
        found = Searched(
            candidates=len(made),
            tokens=sum(len(each.tokens) for each in made),
            score=float(scores[winner]),
            runner_up=float(others.max()) if others.size else None,
        )
        return replace(made[winner], request=group.request, search=found)


@dataclass
class _Candidates:
    """What is drawn for a request."""

    request: Request
    asked: list[Request]
    made: dict[int, Completion] = field(default_factory=dict)
    """By number."""

    @classmethod
    def of(cls, request: Request, count: int) -> "_Candidates":
        first = request.attempt * MOST
        return cls(request, [replace(request, attempt=first + number) for number in range(count)])


@dataclass(frozen=True, kw_only=True)
class BestOf(Search):
    """The candidate of highest score among n."""

    n: int

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("N", self.n, most=MOST)

    @property
    def name(self) -> str:
        return f"best-of:{self.n}:{self.score.name}"

    @property
    def tries(self) -> float:
        return self.n

    def count(self, request: Request, config: DecodeConfig) -> int:
        return self.n


@dataclass(frozen=True, kw_only=True)
class BestOfPoisson(Search):
    """The candidate of highest score among n = 1 + Poisson(μ)."""

    mu: float

    def __post_init__(self):
        take_plain_numbers(self)
        _check_positive("MU", self.mu, LARGEST_MEAN)

    @property
    def name(self) -> str:
        return f"best-of-poisson:{format_strength((self.mu,))}:{self.score.name}"

    @property
    def tries(self) -> float:
        return 1 + self.mu

    def count(self, request: Request, config: DecodeConfig) -> int:
        return 1 + poisson(self.mu, uniform(request, config, "candidates"))


@dataclass(frozen=True, kw_only=True)
class SoftBestOf(Search):
    """One of n candidates, with probabilities softmax(score / β)."""

    n: int
    beta: float

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("N", self.n, most=MOST)
        _check_positive("BETA", self.beta)

    @property
    def name(self) -> str:
        return f"soft-best-of:{self.n}:{format_strength((self.beta,))}:{self.score.name}"

    @property
    def tries(self) -> float:
        return self.n

    def count(self, request: Request, config: DecodeConfig) -> int:
        return self.n

    def choose(self, scores: np.ndarray, request: Request, config: DecodeConfig) -> int:
        noise = [gumbel(uniform(request, config, "choice", number)) for number in range(len(scores))]
        # Differences from the highest: β may be as small as it likes.
        return int(np.argmax((scores - scores.max()) / self.beta + noise))


def _check_positive(name: str, value: float, most: float = math.inf) -> None:
    if not isinstance(value, int | float) or not 0 < value <= most or math.isinf(value):
        told = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}: expected a number above 0{told}, got {value!r:.40}")


def best_of(n: int, score: object, plain: Draw = complete) -> BestOf:
    """Returns the draw of the best of n candidates, for `draw=` of `generate` and `sweep`.

    Args:
      n: candidates of each request, at least 1; the price is n times the tokens.
      score: what they are ranked by: text such as "length:40:60" or "log-ratio*0.5+slots", or a function with TRL's
        signature. Of equal candidates the first is taken.
      plain: draws the candidates.
    """
    return BestOf(n=n, score=as_score(score), plain=plain)


def best_of_poisson(mu: float, score: object, plain: Draw = complete) -> BestOfPoisson:
    """Returns the draw of the best of 1 + Poisson(μ) candidates; see `best_of`."""
    return BestOfPoisson(mu=mu, score=as_score(score), plain=plain)


def soft_best_of(n: int, beta: float, score: object, plain: Draw = complete) -> SoftBestOf:
    """Returns the draw of one of n candidates with probabilities softmax(score / β); see `best_of`."""
    return SoftBestOf(n=n, beta=beta, score=as_score(score), plain=plain)


def parse_draw(text: str, plain: Draw = complete) -> Draw:
    """Returns the draw that `mixture`, `best-of:N:SCORE`, … says; files and modules of a score are read now.

    Raises:
      ValueError: an unknown draw or score, a part is missing, or a number is out of its range.
    """
    if text == "mixture":
        return plain
    name, numbers, spec = split_draw(text)
    make, readers = KINDS[name]
    read = [
        reader(number, label) for reader, number, label in zip(readers, numbers, DRAWS[name], strict=True)
    ]
    return make(*read, parse_score(spec), plain)


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise ValueError(f"{name}: expected a whole number, at least 1, got {text!r:.40}")
    return int(text)


def _real(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number above 0, got {text!r:.40}") from None


KINDS = {
    "best-of": (best_of, (_whole,)),
    "best-of-poisson": (best_of_poisson, (_real,)),
    "soft-best-of": (soft_best_of, (_whole, _real)),
}
"""Name of a draw -> what makes it, and what reads its numbers."""
