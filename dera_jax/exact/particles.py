"""Draws from the response-level optimum at any λ: a population that is drawn again when few of it carry its weight.

N completions of the realigned policy go side by side; token by token each has the weight Π z. After every chunk those
of a population whose effective size (Σ w)² / Σ w² is below N / 2 are drawn again in proportion to their weights, and go
on from there with noise of their own. The mean weights multiply to an unbiased estimate of Z(λ). One of the population
is the draw; its law tends to Eq. 5 as N grows.

References: Doucet and Johansen 2009, A tutorial on particle filtering and smoothing; Douc and Cappé 2005, Comparison of
resampling schemes (systematic resampling).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from dera_jax.common.checks import check_count
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Population, Request, Shape
from dera_jax.decoding.room import CHUNK
from dera_jax.devices.usage import Usage
from dera_jax.exact.draws import CUT, ExactDraw
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule
from dera_jax.search.block_batch import BlockBatch
from dera_jax.search.candidates import Candidate
from dera_jax.search.draws import MOST
from dera_jax.search.groups import Branch, Group
from dera_jax.search.noise import uniform


@dataclass(frozen=True, kw_only=True)
class Particles(ExactDraw):
    """One of N completions that are drawn again in proportion to their weights on the way."""

    n: int
    every: int = CHUNK
    """Tokens between two looks at the weights."""

    children = 1
    shrinks = ranked = trace = False

    def __post_init__(self):
        super().__post_init__()
        check_count("N", self.n, least=2, most=MOST)
        check_count("every", self.every)

    @property
    def method(self) -> str:
        return f"particles:{self.n}" if self.every == CHUNK else f"particles:{self.n}:every={self.every}"

    @property
    def steps(self) -> int:
        """Tokens of a roll-out, all of which are kept."""
        return self.every

    emitted = steps

    @property
    def width(self) -> int:
        """Rows of a request."""
        return self.n

    @property
    def tries(self) -> float:
        """Completions that take as many forward passes as a request."""
        return self.n

    def batch(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        strengths: int = 1,
    ) -> "ParticleBatch":
        """Returns the batch of the draw; see `MixtureDraw.batch`."""
        return ParticleBatch(policies, shape, config, rows, rule, usage, search=self)

    def score_all(self, candidates: Sequence[Candidate], decode) -> np.ndarray:
        """Returns nothing of them [1, candidates]: a population is weighed where it stands together."""
        return np.zeros((1, len(candidates)))


@dataclass
class ParticleGroup(Group):
    """A request's population."""

    log_z: float = 0.0
    """Of the mean weights of those that were drawn again."""
    resamplings: int = 0


class ParticleBatch(BlockBatch):
    """Groups of rows, each a population."""

    def _group(self, request: Request, rows: list[int | None]) -> ParticleGroup:
        branches = [Branch(ancestor=number) for number in range(len(rows))]
        return ParticleGroup(request, self.endings_of(request), rows, branches)

    def _decide(
        self, group: ParticleGroup, candidates: list[Candidate], copies: dict[int, int]
    ) -> Completion | None:
        weighed = [self._weighed(group, candidate) for candidate in candidates]
        weights = np.array([candidate.log_weight for candidate in weighed])
        if all(candidate.ended for candidate in weighed):
            return self._chosen(group, weighed, weights)
        if effective_size(weights) < self.search.n / 2:
            group.log_z += log_mean(weights)
            group.resamplings += 1
            again = systematic(weights, self._uniform(group, f"again {group.decisions}"))
            weighed = [replace(weighed[number], log_weight=0.0) for number in again]
        group.decisions += 1
        group.ended = [candidate for candidate in weighed if candidate.ended]
        self._go_on(group, [(n, each) for n, each in enumerate(weighed) if not each.ended], copies)
        return None

    def _weighed(self, group: ParticleGroup, candidate: Candidate) -> Candidate:
        """Returns a candidate with its weight; one that had ended before has it."""
        if candidate.row is None:
            return candidate
        branch = group.branches[self.slots[candidate.row].number]
        if not candidate.ended:
            new = candidate.drawn.record.log_normalizer
            return replace(candidate, log_weight=branch.log_weight + _sum(new), ancestor=branch.ancestor)
        made = candidate.completion
        weight = branch.log_weight + _sum(made.log_normalizers[candidate.start :])
        if made.finish_reason == CUT and self.search.limit_means == "ended":
            weight = -math.inf
        return replace(candidate, row=None, log_weight=weight, ancestor=branch.ancestor)

    def _chosen(self, group: ParticleGroup, ended: list[Candidate], weights: np.ndarray) -> Completion:
        """Returns one of the population, in proportion to the weights."""
        # Where all weights are 0, any.
        usable = weights if weights.max() > -math.inf else np.zeros(len(weights))
        shares = np.exp(usable - usable.max()).cumsum()
        place = int(np.searchsorted(shares, self._uniform(group, "choice") * shares[-1], side="right"))
        log_weight = group.log_z + log_mean(weights)
        found = Population(
            particles=len(ended),
            tokens=group.tokens,
            log_weight=log_weight if log_weight > -math.inf else None,
            effective=effective_size(weights),
            resamplings=group.resamplings,
            ancestors=len({each.ancestor for each in ended}),
            cut=sum(each.completion.finish_reason == CUT for each in ended),
        )
        chosen = ended[min(place, len(ended) - 1)].completion
        return replace(chosen, request=group.request, exact=found)

    def _uniform(self, group: ParticleGroup, purpose: str) -> float:
        return uniform(group.request, self.config, purpose)


def _sum(log_normalizers: np.ndarray) -> float:
    return float(log_normalizers.sum(dtype=np.float64))


def effective_size(log_weights: Float[np.ndarray, " n"]) -> float:
    """Returns  (Σ w)² / Σ w²; 0 where all weights are 0."""
    most = log_weights.max()
    if most == -math.inf:
        return 0.0
    weights = np.exp(log_weights - most)
    return float(weights.sum() ** 2 / (weights**2).sum())


def log_mean(log_weights: Float[np.ndarray, " n"]) -> float:
    """Returns  log (1/n) Σ w; −inf where all weights are 0."""
    most = float(log_weights.max())
    return most if most == -math.inf else most + math.log(np.exp(log_weights - most).mean())


def systematic(log_weights: Float[np.ndarray, " n"], u: float) -> Int[np.ndarray, " n"]:
    """Returns n indices, each as often as its share of the weights says, up to rounding.

    Args:
      u: between 0 and 1.

    >>> systematic(np.log([0.5, 0.25, 0.125, 0.125]), 0.5)
    array([0, 0, 1, 3])
    """
    weights = np.exp(log_weights - log_weights.max())
    edges = np.cumsum(weights) / weights.sum()
    places = (np.arange(len(weights)) + u) / len(weights)
    return np.minimum(np.searchsorted(edges, places, side="right"), len(weights) - 1)
