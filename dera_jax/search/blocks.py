"""Block by block: several continuations of a few tokens, the best of which are kept and gone on from.

  blocks          best of K at every M tokens; K = 1 is the plain draw
  soft blocks     one of K, with probabilities softmax(score / β)
  robust blocks   best of K by the weights of the scores that serve the worst of them
  beams           the best B of B · K, at every M tokens (chunk beam search)
  rejection       N candidates; at every M tokens the worst share of those still at work is given up

Candidate k of a row's part is drawn with the noise of the request's attempt k: the first one of the first part is the
plain draw's for as long as it is kept.

References: Mudgal et al. 2024, Controlled Decoding, arXiv:2310.17022 (blocks); Zhou et al. 2024, Weak-to-Strong Search,
arXiv:2405.19262 (beams); Sun et al. 2024, Speculative Rejection, arXiv:2410.20290; Son et al. 2025, Robust
Multi-Objective Decoding, arXiv:2503.08796.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dera_jax.common.checks import check_count, take_plain_numbers
from dera_jax.data.prompts import prompt_text
from dera_jax.decoding.complete import Draw, check_no_drafts, complete, in_batches
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request, Shape
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule
from dera_jax.search.best_of import BestOf
from dera_jax.search.block_batch import BlockBatch
from dera_jax.search.candidates import Candidate
from dera_jax.search.draws import MOST, Search, check_positive
from dera_jax.search.noise import gumbel, uniform
from dera_jax.search.robust import robust_weights
from dera_jax.search.scores import Decode, as_score
from dera_jax.strengths import format_strength

LONGEST = 4096
"""Tokens of a roll-out."""


@dataclass(frozen=True, kw_only=True)
class BlockSearch(Search):
    """A draw that rolls out several candidates of a request at a time; subclasses say which are kept."""

    children: int
    """Candidates that go on from one branch."""
    emitted: int
    """Tokens that are kept of a candidate that is chosen."""
    beams: int = 1
    """Branches that are kept."""

    shrinks = False
    """Whether rows that nothing goes on in are not needed any more."""
    ranked = False
    """Whether the candidates of a branch begin with its most probable tokens."""
    draft = "none"
    draft_length = 0
    shares = False
    """Its rows are no strengths' together, and draft nothing."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_count(self._letters[0], self.children, most=MOST)
        check_count(self._letters[1], self.emitted, most=LONGEST)
        check_count(self._letters[2], self.beams, most=MOST)
        if self.width > MOST:
            raise ValueError(f"B·K: expected at most {MOST} candidates at a time, got {self.width}")

    _letters = "K", "M", "B"
    """What children, emitted tokens and beams are called in the notation."""

    @property
    def steps(self) -> int:
        """Tokens of a roll-out."""
        return self.emitted

    @property
    def width(self) -> int:
        """Rows of a request."""
        return self.beams * self.children

    @property
    def tries(self) -> float:
        return self.width * self.steps / self.emitted

    def check(self, prompts: Sequence, aligned: int) -> None:
        super().check(prompts, aligned)
        check_no_drafts(self.name.partition(":")[0], self.plain)

    def reading_on(self) -> "BlockSearch":
        """Returns the same search for one batch, whose score remembers the candidates that it has seen last."""
        return replace(self, score=self.score.reading_on())

    def score_all(self, candidates: Sequence[Candidate], decode: Decode) -> np.ndarray:
        """Returns the scores [1, candidates]: see `total`."""
        return np.array([self.score([each.completion for each in candidates], decode)])

    def total(self, scores: np.ndarray) -> np.ndarray:
        """Returns one number for each candidate, of scores [parts, candidates]."""
        return scores.sum(axis=0)

    def survivors(
        self, scores: np.ndarray, ended: np.ndarray, request: Request, config: DecodeConfig, number: int
    ) -> list[int]:
        """Returns which candidates are kept, the best first: of equal scores the first ones."""
        return best(self.total(scores), self.beams)

    def batch(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        strengths: int = 1,
    ) -> BlockBatch:
        """Returns the batch of the draw; see `MixtureDraw.batch`."""
        return BlockBatch(policies, shape, config, rows, rule, usage, search=self.reading_on())

    def __call__(
        self,
        policies: Sequence[Policy],
        requests: Sequence[Request],
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
    ) -> Iterator[Completion]:
        """Yields the completion of every request as its search ends.

        Args:
          rows: of a batch, at least `width`.
          usage: is added to.

        Raises:
          ScoreError: the score fails; prompt and candidates are named.
          ValueError: see `BlockBatch`.
        """
        self.check([prompt_text(request.prompt.prompt) for request in requests], len(policies) - 1)
        self.score.check_policies(policies)
        yield from in_batches(self, policies, requests, config, rows, rule, usage)


def best(scores: np.ndarray, count: int) -> list[int]:
    """Returns the places of the highest scores, the highest first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count].tolist()


@dataclass(frozen=True, kw_only=True)
class Blocks(BlockSearch):
    """The best of K continuations, or the best B of B · K, at every M tokens."""

    @property
    def name(self) -> str:
        head = f"blocks:{self.children}" if self.beams == 1 else f"beams:{self.beams}:{self.children}"
        return f"{head}:{self.emitted}:{self.score.name}"

    def __call__(self, policies, requests, config, rows, *rest, **named) -> Iterator[Completion]:
        """Yields the completion of every request; where there is nothing to choose, the plain draw's."""
        if self.width == 1:
            alone = BestOf(n=1, score=self.score, plain=self.plain, trace=self.trace)
            yield from alone(policies, requests, config, rows, *rest, **named)
        else:
            yield from super().__call__(policies, requests, config, rows, *rest, **named)


@dataclass(frozen=True, kw_only=True)
class TemperedBlocks(BlockSearch):
    """Blocks whose choice has a temperature β, in the unit of the score."""

    beta: float

    kind = ""
    """What the notation calls them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("BETA", self.beta)

    @property
    def name(self) -> str:
        numbers = f"{self.children}:{self.emitted}:{format_strength((self.beta,))}"
        return f"{self.kind}:{numbers}:{self.score.name}"


@dataclass(frozen=True, kw_only=True)
class SoftBlocks(TemperedBlocks):
    """One of K continuations, with probabilities softmax(score / β), at every M tokens."""

    kind = "soft-blocks"

    def survivors(
        self, scores: np.ndarray, ended: np.ndarray, request: Request, config: DecodeConfig, number: int
    ) -> list[int]:
        """Returns the one that is drawn."""
        totals = self.total(scores)
        noise = [gumbel(uniform(request, config, f"block {number}", place)) for place in range(len(totals))]
        return best((totals - totals.max()) / self.beta + noise, 1)


@dataclass(frozen=True, kw_only=True)
class RobustBlocks(TemperedBlocks):
    """The best of K continuations at every M tokens, by the weights of the scores that serve the worst of them.

    w = argmin_w log (1/K) Σₖ exp(Σᵢ wᵢ sᵢ(k) / β)  over the simplex; kept is argmaxₖ Σᵢ wᵢ sᵢ(k). The weights in the
    notation scale the sᵢ before.
    """

    kind = "robust-blocks"

    def score_all(self, candidates: Sequence[Candidate], decode: Decode) -> np.ndarray:
        """Returns each score of the sum by itself [parts, candidates]."""
        return self.score.parts([each.completion for each in candidates], decode)

    def total(self, scores: np.ndarray) -> np.ndarray:
        return robust_weights(scores / self.beta) @ scores


@dataclass(frozen=True, kw_only=True)
class Rejection(BlockSearch):
    """The best of N completions, the worst share of those still at work given up at every M tokens."""

    share: float
    """Of those at work; in (0, 1). At least one of them stays."""

    children: int = 1
    """All candidates go on, each by itself."""

    shrinks = True
    _letters = "K", "M", "N"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.share, int | float) or not 0 < self.share < 1:
            raise ValueError(f"SHARE: expected a number between 0 and 1, got {self.share!r:.40}")

    @property
    def name(self) -> str:
        return f"rejection:{self.beams}:{self.emitted}:{format_strength((self.share,))}:{self.score.name}"

    def survivors(
        self, scores: np.ndarray, ended: np.ndarray, request: Request, config: DecodeConfig, number: int
    ) -> list[int]:
        """Returns all that have ended, and the best of the others."""
        order = best(self.total(scores), len(ended))
        living = [place for place in order if not ended[place]]
        given_up = set(living[len(living) - int(self.share * len(living)) :]) if len(living) > 1 else ()
        return [place for place in order if place not in given_up]


def blocks(k: int, m: int, score: object, *, beams: int = 1, plain: Draw = complete) -> Blocks:
    """Returns the draw of the best of k continuations at every m tokens, for `draw=` of `generate` and `sweep`.

    Args:
      k: continuations of each branch, at least 1; 1 with one branch is the plain draw.
      m: tokens of a continuation, at least 1.
      score: what they are ranked by, see `best_of`; it sees a completion cut where the continuation ends.
      beams: branches that are kept.
      plain: draws where there is nothing to choose; its prefix cache is used.
    """
    return Blocks(children=k, emitted=m, beams=beams, score=as_score(score), plain=plain)


def beams(b: int, k: int, m: int, score: object, *, plain: Draw = complete) -> Blocks:
    """Returns the draw that keeps the best b of b · k continuations at every m tokens; see `blocks`."""
    return blocks(k, m, score, beams=b, plain=plain)


def soft_blocks(k: int, m: int, beta: float, score: object, *, plain: Draw = complete) -> SoftBlocks:
    """Returns the draw of one of k continuations with probabilities softmax(score / β); see `blocks`."""
    return SoftBlocks(children=k, emitted=m, beta=beta, score=as_score(score), plain=plain)


def robust_blocks(k: int, m: int, beta: float, score: object, *, plain: Draw = complete) -> RobustBlocks:
    """Returns the draw of the best of k continuations for the worst of several scores; see `RobustBlocks`."""
    return RobustBlocks(children=k, emitted=m, beta=beta, score=as_score(score), plain=plain)


def rejection(n: int, m: int, share: float, score: object, *, plain: Draw = complete) -> Rejection:
    """Returns the draw of the best of n completions that gives up the worst share at every m tokens; see `blocks`."""
    return Rejection(beams=n, emitted=m, share=share, score=as_score(score), plain=plain)
