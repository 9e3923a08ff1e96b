"""Rows to numbers: means with intervals over prompts, differences from λ = 1, effective sample sizes.

Completions of one prompt resemble each other, so intervals come from drawing prompts, not
completions, with replacement. All strengths share prompts and noise, so a difference of two
strengths is far better known than either mean: it is taken pair by pair.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from dera_jax.strengths import strength_from_json

LEVEL = 0.95
"""Coverage of all intervals."""

ENDED = ("eos", "stop")
"""Finish reasons of completions that were not cut off."""

FEW_GROUPS = 10
"""Fewer groups that all agree say nothing about how far others may be from them."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over prompts."""

    mean: float
    low: float
    """NaN where there is no interval: of one prompt only, or of fewer than 10 that all agree."""
    high: float
    """NaN likewise."""

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Summary:
    """What the completions at one strength show."""

    lambda_: tuple[float, ...]
    """Strength of each aligned model."""
    beta: float | None
    """KL strength of the aligned model; None if unknown."""
    beta_effective: float | None
    """β/λ, ∞ at λ = 0; None if β is unknown, λ < 0 or there are several aligned models."""
    n: int
    """Completions."""
    prompts: int
    coverage: float
    """Share of all prompts and turns that were decoded at this strength, in (0, 1]; two above ½ overlap."""
    rewards: dict[str, Estimate]
    """Of each reward, over the completions that it gave a number for."""
    scored: dict[str, int]
    """Completions that each reward gave a number for."""
    reward_differences: dict[str, Estimate]
    """Reward less that at λ = 1 of the same prompt and sample; empty at λ = 1 and without it."""
    kl_to_reference: Estimate
    """Per completion, in nats."""
    length: Estimate
    """In tokens."""
    log_ratio: Estimate | None
    """log π_aligned/π_reference of the completions drawn, in nats; None with several aligned models."""
    ended: float
    """Share of completions that were not cut off, in [0, 1]."""
    ess: float | None
    """Effective share of completions as samples of the sequence-level mixture (Eq. 5), in (0, 1].

    The mean over prompts of the effective sample size of their `log_weights` over the number of these,
    which it cannot fall below one of; prompts with one are left out. None without weights.
    """
    tokens: int
    """Drawn in all."""
    unscored: dict[str, int] = field(default_factory=dict)
    """Completions that each reward was not computed for, if there are any."""
    copies: int = 0
    """Completions that are copies of another of their prompt, since they were drawn with certainty."""
    turn_rewards: dict[str, dict[int, Estimate]] = field(default_factory=dict)
    """Of each reward, by the turn, from 0; empty where no prompt has several."""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean when whole groups are drawn with replacement.

    A resample's mean is  Σ_g c_g S_g / Σ_g c_g n_g,  group g drawn c_g times, with sum S_g and n_g
    values. (NaN, NaN) if there is one group only, and if there are fewer than 10 whose means are all
    equal: their resamples are equal too, an interval of no length, which two prompts do not earn.

    Args:
      values: at least one, finite.
      groups: of each value: its prompt.
      resamples: number of draws; each gives two resamples.
      seed: of the draws; the same for equal arguments, in any order.
    """
    values = np.asarray(values, np.float64)
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    if len(numbers) < 2:
        return math.nan, math.nan
    center = math.fsum(values) / len(values)
    # Deviations: equal values then give an interval of no length, whatever the rounding.
    ascending = np.argsort(values)
    sums = np.bincount(index[ascending], values[ascending] - center)
    sizes = np.bincount(index).astype(np.float64)
    if len(numbers) < FEW_GROUPS and np.ptp(sums / sizes) <= 1e-12 * np.abs(values).max():
        return math.nan, math.nan
    # Which group a draw stands for hangs on what it holds, neither on its name nor on the order of rows; each
    # is read upwards and downwards, so that the interval of −x is that of x, turned around.
    counts = _resample_counts(len(numbers), resamples, seed)
    drawn = counts @ np.sort(sizes)
    upwards, downwards = (sums[np.lexsort((sign * sums, sizes))] for sign in (1, -1))
    means = center + np.concatenate([counts @ upwards / drawn, counts @ downwards / drawn])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _resample_counts(groups: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each group is drawn: [resamples, groups]. The same few serve a whole sweep."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return draws.astype(np.float64)


def estimate(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray) -> Estimate:
    """Returns the mean of at least one value, with its interval over groups, whatever their order."""
    return Estimate(math.fsum(values) / len(values), *bootstrap_interval(values, groups))


def paired_difference(
    values: dict[tuple[Hashable, ...], float], base: dict[tuple[Hashable, ...], float]
) -> Estimate | None:
    """Returns the mean of `values` less `base` over the keys of both, None if there are none.

    Args:
      values: by (prompt_id, sample, …).
      base: likewise, to be subtracted.
    """
    keys = [key for key in values if key in base]
    if not keys:
        return None
    return estimate([values[key] - base[key] for key in keys], [key[0] for key in keys])


def effective_sample_size(log_weights: Sequence[float] | np.ndarray) -> float:
    """Returns Kish's effective sample size  (Σ w)² / Σ w²,  from 1 to the number of weights.

    Args:
      log_weights: log w, in nats, up to a constant; at least one is finite, the others finite or −∞.

    >>> effective_sample_size([-1000.0, -1000.0])
    2.0
    """
    log_weights = np.asarray(log_weights, np.float64)
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum())


CERTAIN = -1e-6
"""Log-probability from which on a completion was drawn with certainty, as greedy decoding does."""


def log_weight(row: dict, ends: Collection[str] = ("eos",)) -> float | None:
    """Returns the log importance weight of a row for the sequence-level mixture, up to a constant; in nats.

    log w = log π(y|x) + Σ log zₜ − log q(y|x),  q being what was drawn from. None where it is unknown: the
    completion was cut off, by its length or at a stop text, or the rule is no mixture.

    Args:
      ends: finish reasons of whole texts; with `stop` the mixture is that of texts up to the stop text.
    """
    if row["finish_reason"] not in ends or row["log_normalizer"] is None:
        return None
    return row["logprob"] + row["log_normalizer"] - row["sampling_logprob"]


def log_weights(
    rows: Sequence[dict], ends: Collection[str] = ("eos",)
) -> dict[Hashable, list[tuple[float, list[dict]]]]:
    """Returns by prompt the log importance weights that compare, each with its rows, of rows of one strength.

    Weights are known up to a constant of the context, which a prompt's first turns share and later ones, that
    follow answers of their own, do not: a conversation has one weight, the product of its turns'. Left out
    are those with a turn that has none, and samples of a prompt that were drawn with certainty and are copies of
    one text.

    Args:
      ends: as of `log_weight`.
    """
    conversations: dict[tuple, dict[int, dict]] = defaultdict(dict)
    turns: dict[Hashable, set[int]] = defaultdict(set)
    for row in rows:
        prompt, turn = row["prompt_id"], row.get("turn", 0)
        conversations[prompt, row.get("seed"), row["sample"]][turn] = row
        turns[prompt].add(turn)
    found = defaultdict(list)
    for (prompt, *_), by_turn in conversations.items():
        each = [log_weight(row, ends) for row in by_turn.values()]
        if None not in each and by_turn.keys() == turns[prompt]:
            found[prompt].append((math.fsum(each), list(by_turn.values())))
    return {prompt: some for prompt, some in found.items() if not _are_copies([each for _, each in some])}


def _are_copies(conversations: Sequence[Sequence[dict]]) -> bool:
    """Whether all were drawn with certainty, and some say the same."""
    texts = {tuple(row.get("completion", n) for row in each) for n, each in enumerate(conversations)}
    certain = all(_certain(row) for each in conversations for row in each)
    return certain and len(texts) < len(conversations)


def _certain(row: dict) -> bool:
    return row["sampling_logprob"] >= CERTAIN


def effective_sample_share(rows: Sequence[dict]) -> float | None:
    """Returns `Summary.ess` of rows of one strength."""
    shares = [
        effective_sample_size([weight for weight, _ in found]) / len(found)
        for found in log_weights(rows).values()
        if len(found) > 1
    ]
    return math.fsum(shares) / len(shares) if shares else None


def count_copies(rows: Sequence[dict]) -> int:
    """Returns how many rows of one strength are copies of another: beyond the first drawn with certainty."""
    certain = Counter(
        (row["prompt_id"], row.get("turn", 0), row.get("completion")) for row in rows if _certain(row)
    )
    return sum(count - 1 for count in certain.values())


def summarize(rows: Sequence[dict]) -> list[Summary]:
    """Returns a summary of each strength in `rows` (see `results`), in increasing order."""
    by_strength = defaultdict(list)
    for row in rows:
        by_strength[strength_from_json(row["lambda"])].append(row)
    names = list(dict.fromkeys(name for row in rows for name in row["rewards"]))
    aligned = {name: _rewards(by_strength.get((1.0,), []), name) for name in names}
    places = _places(rows)
    return [
        _summarize_strength(lambda_, by_strength[lambda_], aligned, places) for lambda_ in sorted(by_strength)
    ]


def _summarize_strength(
    lambda_: tuple[float, ...], rows: list[dict], aligned: dict[str, dict], places: set[tuple]
) -> Summary:
    """Returns the summary of one strength.

    Args:
      aligned: the values of each reward at λ = 1.
      places: prompts and turns of all strengths.
    """
    prompts = [row["prompt_id"] for row in rows]
    beta = _beta(rows)
    values = {name: found for name in aligned if (found := _rewards(rows, name))}
    differences = {}
    if lambda_ != (1.0,):
        differences = {name: paired_difference(found, aligned[name]) for name, found in values.items()}
    log_ratios = [_log_ratio(row) for row in rows]
    several = len({turn for _, turn in places}) > 1
    return Summary(
        lambda_=lambda_,
        beta=beta,
        beta_effective=_beta_effective(beta, lambda_),
        n=len(rows),
        prompts=len(set(prompts)),
        coverage=len(_places(rows)) / len(places),
        rewards={name: _over_prompts(found) for name, found in values.items()},
        scored={name: len(found) for name, found in values.items()},
        unscored={
            name: count for name in aligned if (count := sum(name not in row["rewards"] for row in rows))
        },
        reward_differences={name: difference for name, difference in differences.items() if difference},
        kl_to_reference=_kl([row["kl_to_reference"] for row in rows], prompts),
        length=estimate([row["length"] for row in rows], prompts),
        log_ratio=None if None in log_ratios else estimate(log_ratios, prompts),
        ended=float(np.mean([row["finish_reason"] in ENDED for row in rows])),
        ess=effective_sample_share(rows),
        copies=count_copies(rows),
        tokens=sum(map(drawn_tokens, rows)),
        turn_rewards={name: _by_turn(found) for name, found in values.items()} if several else {},
    )


def drawn_tokens(row: dict) -> int:
    """Returns how many tokens were drawn for a completion, EOS among them."""
    return row["length"] + (row["finish_reason"] == "eos")


def _places(rows: Sequence[dict]) -> set[tuple[Hashable, ...]]:
    """Returns the (prompt_id, turn) that were decoded."""
    return {(row["prompt_id"], row.get("turn", 0)) for row in rows}


def _rewards(rows: list[dict], name: str) -> dict[tuple[Hashable, ...], float]:
    """Returns the numbers one reward gave, by (prompt_id, sample, turn)."""
    return {
        (row["prompt_id"], row["sample"], row.get("turn", 0)): row["rewards"][name]
        for row in rows
        if row["rewards"].get(name) is not None
    }


def _over_prompts(found: dict[tuple[Hashable, ...], float]) -> Estimate:
    return estimate(list(found.values()), [key[0] for key in found])


def _by_turn(found: dict[tuple[Hashable, ...], float]) -> dict[int, Estimate]:
    """Returns the mean of each turn's numbers, of keys (prompt_id, sample, turn)."""
    turns = sorted({key[2] for key in found})
    return {turn: _over_prompts({key: x for key, x in found.items() if key[2] == turn}) for turn in turns}


def _kl(values: list[float], prompts: list[Hashable]) -> Estimate:
    # What cannot be negative and is 0 in all is the reference itself: known, whatever the prompts.
    return estimate(values, prompts) if any(values) else Estimate(0.0, 0.0, 0.0)


def _log_ratio(row: dict) -> float | None:
    aligned = row["aligned_logprob"]
    if isinstance(aligned, list):
        if len(aligned) != 1:
            return None
        aligned = aligned[0]
    return aligned - row["reference_logprob"]


def _beta(rows: list[dict]) -> float | None:
    betas = {row["beta"] for row in rows if not isinstance(row["beta"], list)}
    return betas.pop() if len(betas) == 1 else None


def _beta_effective(beta: float | None, lambda_: tuple[float, ...]) -> float | None:
    if beta is None or len(lambda_) != 1 or lambda_[0] < 0:
        return None
    return beta / lambda_[0] if lambda_[0] else math.inf


def turns_of(summaries: Sequence[Summary], name: str) -> list[int]:
    """Returns the turns that a reward is known of, from 0; none where no prompt has several."""
    return sorted({turn for summary in summaries for turn in summary.turn_rewards.get(name, {})})
