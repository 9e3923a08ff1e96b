"""Best of n and its kin: several candidates of each request, drawn from the realigned policy, and the one chosen.

  best of n            the candidate of highest score among n
  best of Poisson      the same with n = 1 + Poisson(μ), so that the price is a real number
  soft best of n       one of n candidates, with probabilities softmax(score / β)

Candidate k is the request's attempt k, so candidate 0 is the plain draw's completion. The number of candidates and the
noise of a soft choice depend on seed, prompt, turn and sample alone: strengths share them.
"""

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
from dera_jax.search.candidates import Candidate
from dera_jax.search.draws import MOST, Search, check_positive
from dera_jax.search.noise import gumbel, poisson, uniform
from dera_jax.search.scores import Decode, as_score
from dera_jax.search.traces import decision
from dera_jax.strengths import format_strength

LARGEST_MEAN = 1000.0
"""Of the Poisson variable: `MOST` candidates are 98 standard deviations above."""


@dataclass(frozen=True, kw_only=True)
class WholeSearch(Search):
    """A draw that ranks whole completions."""

    def count(self, request: Request, config: DecodeConfig) -> int:
        """Returns how many candidates a request has."""
        raise NotImplementedError

    def choose(self, scores: np.ndarray, request: Request, config: DecodeConfig) -> int:
        """Returns which candidate is taken: of the highest score the first."""
        return int(np.argmax(scores))

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
        looked_at = [Candidate(each, score=float(s)) for each, s in zip(made, scores, strict=True)]
        tokens = sum(len(each.tokens) for each in made)
        found = Searched(
            candidates=len(made),
            tokens=tokens,
            passes=tokens,
            score=float(scores[winner]),
            runner_up=float(others.max()) if others.size else None,
            trace=[decision(looked_at, [winner], lambda each: each.completion.text)] if self.trace else None,
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
class BestOf(WholeSearch):
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
class BestOfPoisson(WholeSearch):
    """The candidate of highest score among n = 1 + Poisson(μ)."""

    mu: float

    def __post_init__(self):
        take_plain_numbers(self)
        check_positive("MU", self.mu, LARGEST_MEAN)

    @property
    def name(self) -> str:
        return f"best-of-poisson:{format_strength((self.mu,))}:{self.score.name}"

    @property
    def tries(self) -> float:
        return 1 + self.mu

    def count(self, request: Request, config: DecodeConfig) -> int:
        return 1 + poisson(self.mu, uniform(request, config, "candidates"))


@dataclass(frozen=True, kw_only=True)
class SoftBestOf(WholeSearch):
    """One of n candidates, with probabilities softmax(score / β)."""

    n: int
    beta: float

    def __post_init__(self):
        take_plain_numbers(self)
        check_count("N", self.n, most=MOST)
        check_positive("BETA", self.beta)

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
