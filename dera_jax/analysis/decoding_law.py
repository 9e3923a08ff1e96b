"""From drawn tokens back to how they were decoded: λ, temperature, top-k and top-p.

What is not cut off is an exponential family in θ = (1/T, λ/T), so θ is found by Newton's method. What is cut
off biases it, and where to look for the cut hangs on θ. So θ is found from words well inside the set that is
kept: given that a token is among them, its law is the family restricted to them, wherever the cut is.

References: Naseh et al., "Stealing the Decoding Algorithms of Language Models", arXiv:2303.04729.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from dera_jax.analysis.estimates import LEVEL
from dera_jax.analysis.newton import Score, covariance, maximize

SEEN = math.log(100)
"""Nats by which a truncation must explain the tokens better: without it, tokens look so once in 100 times."""
INTERVAL = math.log(20)
"""Nats that a top-k or a top-p may explain less than the best, within its 95 % interval."""
MASSES = np.append(np.arange(1, 1000), 1000) / 1000
"""Values of top-p that are looked at; 1 is none."""
ROUNDS = 5
INNER_K, INNER_P = 0.8, 0.9
"""Of a top-k or top-p that was found: words within that share are well inside, though θ is not exact yet."""
FINAL_P = 0.97
"""Likewise, when θ is."""
SAME = 0.001
"""Models whose KL per token is less, in nats, are too alike to tell λ."""


class Kept(NamedTuple):
    """The words that top-k and then top-p keep of the law at `theta`."""

    theta: np.ndarray
    top_k: int | None = None
    top_p: float | None = None


@dataclass(frozen=True)
class Counts:
    """What sets of words hold: of the untruncated law, and of the tokens; the last set is of all words."""

    log_mass: Float[np.ndarray, " sets"]
    """Σ log M over the tokens inside, M the mass of the set."""
    outside: Int[np.ndarray, " sets"]
    """Tokens outside."""

    def gain(self, tokens: int) -> np.ndarray:
        """Returns by how much each set explains the tokens better than all words do, in nats.

            Σ −log M + n log(n/N) + (N − n) log(1 − n/N),

        n of N tokens being outside: the likelihood ratio of the set with a share n/N of tokens from anywhere.
        Where n = 0 it is −log of the chance that untruncated tokens all lie inside.
        """
        share = self.outside / tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = np.where(self.outside > 0, self.outside * np.log(share), 0.0)
            cost = cost + np.where(self.outside < tokens, (tokens - self.outside) * np.log1p(-share), 0.0)
        return -self.log_mass + cost


@runtime_checkable
class Evidence(Protocol):
    """The drawn tokens, and the models' logits where they were drawn."""

    tokens: int
    groups: Int[np.ndarray, " tokens"]

    def scorer(self, kept: Kept) -> Callable[[np.ndarray], Score]:
        """Returns what gives the `Score` at a θ of tokens that lie in a set of words, given that they do."""

    def counts(self, kept: Kept) -> tuple[Counts, Counts]:
        """Returns what each top-k from 1 on holds beside `kept.top_p`, and each of `MASSES` beside `kept.top_k`."""

    def greedy(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns between which λ each token is the most probable word; low > high where it is at none."""

    def divergence(self) -> float:
        """Returns the mean KL(aligned ‖ reference), in nats per token."""


class Range(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cut:
    """A top-k or a top-p: what was found of it."""

    value: float | None
    """None: none is seen."""
    low: float | None
    """The smallest that is possible; None: no such value was looked at."""
    high: float | None
    """The largest; None: none at all is possible too."""
    gain: float
    """−log of the chance that tokens look as if it were so, where it is not; nats."""


@dataclass(frozen=True)
class Law:
    """How tokens were decoded, as far as they tell."""

    tokens: int
    divergence: float
    """Mean KL(aligned ‖ reference), in nats per token."""
    lambda_: Range | None
    """None where the models are too alike."""
    temperature: Range
    top_k: Cut | None
    """None of greedy tokens, as top_p."""
    top_p: Cut | None
    most_probable: float
    """Share of the tokens that are the most probable word at one λ."""
    most_probable_at: tuple[float, float]
    """Those λ."""

    @property
    def greedy(self) -> bool:
        """Whether nothing speaks for a temperature above 0."""
        return self.temperature.value == 0


def find_law(evidence: Evidence, temperature: float | None = None) -> Law:
    """Returns how tokens were decoded.

    Args:
      temperature: if it is known, > 0.

    Raises:
      ValueError: too few tokens, or tokens that no λ and temperature explain.
    """
    apart = evidence.divergence()
    share, at = _most_common(*evidence.greedy())
    told = {"tokens": evidence.tokens, "divergence": apart, "most_probable": share, "most_probable_at": at}
    alike = apart < SAME
    if share == 1 and temperature is None:
        hottest = _hottest(evidence, _nearest(at))
        return Law(lambda_=None if alike else Range(_nearest(at), *at), temperature=Range(0.0, 0.0, hottest),
                   top_k=None, top_p=None, **told)  # fmt: skip
    # Too alike: along λ = 1, the aligned model alone.
    free = np.ones((2, 1)) if alike else np.eye(2)
    theta, _ = maximize(evidence.scorer(Kept(np.array([1.0, 0.5]))), np.array([1.0, 1.0]), free)
    found = _Found()
    for _ in range(ROUNDS):
        before, found = found, _truncation(evidence, theta, found)
        if found.same(before):
            break
        theta, _ = maximize(evidence.scorer(found.inner(theta)), theta, free)
    kept = found.inner(theta, final=True)
    if temperature is not None:
        free = np.zeros((2, 0)) if alike else np.array([[0.0], [1.0]])
        theta = np.array([1.0, theta[1] / theta[0]]) / temperature
    if free.size:
        theta, score = maximize(evidence.scorer(kept), theta, free)
        spread = covariance(score, free, evidence.groups)
    else:
        spread = np.zeros((2, 2))
    lambda_, heat = intervals(theta, spread, len(np.unique(evidence.groups)))
    top_k, top_p = _cuts(evidence, theta, spread, found)
    return Law(lambda_=None if alike else lambda_, temperature=heat, top_k=top_k, top_p=top_p, **told)


def _most_common(low: np.ndarray, high: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Returns the share of intervals that have some λ in common, the most that have, and those λ."""
    real = low <= high
    ends = np.concatenate([low[real], high[real]])
    kind = np.repeat([0, 1], real.sum())
    order = np.lexsort((kind, ends))  # where one ends and another begins, both are there
    depth = np.cumsum(np.where(kind[order] == 0, 1, -1))
    if not len(depth):
        return 0.0, (math.nan, math.nan)
    best = int(np.argmax(depth))
    return float(depth[best] / len(low)), (float(ends[order][best]), float(ends[order][best + 1]))


def _nearest(at: tuple[float, float]) -> float:
    """Returns the middle of an interval, or the end that it has."""
    low, high = at
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low if math.isfinite(low) else high if math.isfinite(high) else 1.0


def _hottest(evidence: Evidence, lambda_: float) -> float:
    """Returns the temperature at which all tokens would be the most probable word once in 20 times."""
    score = evidence.scorer(Kept(np.array([1.0, lambda_])))
    low, high = 1e-4, 10.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        if score(np.array([1.0, lambda_]) / middle).value > -INTERVAL:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class _Found:
    """What is cut off, None if nothing is seen of it."""

    top_k: int | None = None
    top_p: float | None = None

    def same(self, other: "_Found") -> bool:
        close = abs((self.top_p or 1) - (other.top_p or 1)) <= 0.0015
        return self.top_k == other.top_k and (self.top_p is None) == (other.top_p is None) and close

    def inner(self, theta: np.ndarray, final: bool = False) -> Kept:
        """Returns words that are inside even where θ is not exact."""
        k, p = self.top_k, self.top_p
        if k is not None and not final:
            k = max(2, int(INNER_K * k))
        return Kept(theta, k, None if p is None else p * (FINAL_P if final else INNER_P))


def _truncation(evidence: Evidence, theta: np.ndarray, before: _Found) -> _Found:
    """Returns the top-k and the top-p that explain the tokens best, each only if it is seen.

    One is improved while the other is held, starting from either; both only if each explains what the other
    does not.
    """
    k, p = _best(evidence, Kept(theta))
    starts = [(k[0], None), (None, p[0])] if before == _Found() else [(before.top_k, before.top_p)]
    singles = max((k[1], _Found(top_k=k[0])), (p[1], _Found(top_p=p[0])), key=lambda each: each[0])
    if singles[0] < SEEN:
        return _Found()
    best = singles
    for start_k, start_p in starts:
        now = start_k, start_p
        for _ in range(ROUNDS):
            next_p = _best(evidence, Kept(theta, now[0]))[1]
            next_k, gain = _best(evidence, Kept(theta, None, next_p[0]))[0]
            if (next_k, next_p[0]) == now:
                break
            now = next_k, next_p[0]
        if None not in now and gain > best[0]:
            best = gain, _Found(*now)
    if best[0] < singles[0] + SEEN or not _both_seen(evidence, theta, best[1]):
        return singles[1]
    return best[1]


def _best(evidence: Evidence, kept: Kept) -> tuple[tuple[int | None, float], tuple[float | None, float]]:
    """Returns the best top-k beside `kept.top_p` and the best top-p beside `kept.top_k`, with their gains."""
    by_k, by_p = (counts.gain(evidence.tokens) for counts in evidence.counts(kept))
    k, p = int(np.argmax(by_k)), int(np.argmax(by_p))
    return (
        (None if k == len(by_k) - 1 else k + 1, float(by_k[k])),
        (None if p == len(MASSES) - 1 else float(MASSES[p]), float(by_p[p])),
    )


def _both_seen(evidence: Evidence, theta: np.ndarray, found: _Found) -> bool:
    """Returns whether each of two is seen beside the other, also at the smallest top-p that is possible."""
    _, by_p = evidence.counts(Kept(theta, found.top_k))
    gains = by_p.gain(evidence.tokens)
    least = float(MASSES[np.flatnonzero(gains >= gains.max() - INTERVAL)[0]])
    by_k, _ = evidence.counts(Kept(theta, None, least))
    of_k = by_k.gain(evidence.tokens)
    return bool(gains.max() - gains[-1] > SEEN and of_k[found.top_k - 1] - of_k[-1] > SEEN)


def intervals(theta: np.ndarray, spread: np.ndarray, groups: int) -> tuple[Range, Range]:
    """Returns λ = θ₂/θ₁ and T = 1/θ₁ with intervals, by their slopes in θ."""
    first, second = theta
    if first <= 0:
        raise ValueError("the tokens are no draws of a mixture of these models at any temperature")
    slopes = np.array([[-second / first**2, 1 / first], [-1 / first**2, 0.0]])
    # Along λ = 1 that of λ is 0, up to rounding.
    variances = np.maximum(np.diag(slopes @ spread @ slopes.T), 0.0)
    errors = quantile(groups - 1) * np.sqrt(variances)
    each = zip((second / first, 1 / first), errors, strict=True)
    lambda_, heat = (Range(float(v), float(v - e), float(v + e)) for v, e in each)
    return lambda_, heat


def quantile(freedom: int) -> float:
    """Returns Student's quantile of a 95 % interval, by its expansion (Abramowitz and Stegun, 26.7.5).

    >>> round(quantile(9), 2), round(quantile(1000), 3)
    (2.26, 1.962)
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    if freedom < 9:  # intervals of so few groups are those of tokens, see `newton.covariance`
        return z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _cuts(evidence: Evidence, theta: np.ndarray, spread: np.ndarray, found: _Found) -> tuple[Cut, Cut]:
    """Returns what is told of top-k and top-p at the θ that was found."""
    by_k, _ = evidence.counts(Kept(theta, None, found.top_p))
    gains = by_k.gain(evidence.tokens)
    inside = int(np.flatnonzero(by_k.outside == by_k.outside.min())[0]) + 1
    least = inside if inside < len(gains) else None
    gain = 0.0 if found.top_k is None else float(gains[found.top_k - 1] - gains[-1])
    if gain < SEEN:
        found = _Found(None, found.top_p)
        top_k = Cut(None, least, None, 0.0)
    else:
        # Beside a top-p that cuts earlier nearly everywhere, tokens hardly tell one top-k from the next.
        # It is held as found, so the interval is too narrow where both may move together.
        near = np.flatnonzero(gains >= gains[found.top_k - 1] - INTERVAL) + 1
        top_k = Cut(found.top_k, int(near[0]), int(near[-1]), gain)
    lows, highs = [], []
    # θ is not known exactly, and nor is the mass before a token.
    for number, at in enumerate([theta, *_around(theta, spread)] if found.top_p else [theta]):
        _, by_p = evidence.counts(Kept(at, found.top_k))
        gains = by_p.gain(evidence.tokens)
        near = np.flatnonzero(gains >= gains.max() - INTERVAL)
        lows.append(float(MASSES[near[0]]))
        highs.append(float(MASSES[near[-1]]))
        if number == 0:
            best, gain = float(MASSES[np.argmax(gains)]), float(gains.max() - gains[-1])
            all_in = float(MASSES[np.flatnonzero(by_p.outside == by_p.outside.min())[0]])
    if found.top_p is None or best == 1:
        return top_k, Cut(None, all_in, None, 0.0)
    return top_k, Cut(best, min(lows), max(highs), gain)


def _around(theta: np.ndarray, spread: np.ndarray) -> list[np.ndarray]:
    """Returns the ends of the axes of a 95 % ellipse of θ."""
    sizes, axes = np.linalg.eigh(spread)
    steps = 2 * np.sqrt(np.maximum(sizes, 0.0)) * axes
    return [theta + sign * step for step in steps.T for sign in (1, -1)]
