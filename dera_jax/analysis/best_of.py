"""Best of n from samples that are there: what choosing among n of them would give, and how far it goes from the base.

Of m samples of a prompt, every subset of n stands for n fresh draws. The mean over all of them needs no subset: the
i-th lowest of m is the best of C(i − 1, n − 1) of the C(m, n) subsets.

References: Stiennon et al. 2020, Learning to summarize from human feedback (the bound); Nakano et al. 2021, WebGPT (the
estimator).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.estimates import Estimate, estimate
from dera_jax.common.shown import shown
from dera_jax.strengths import Strength, format_strength, strength_from_json

LOG_RATIO = "log-ratio"
"""What ranks without a reward: log π_aligned − log π_reference of the completion."""
ALL_UP_TO = 8
"""Of larger n only powers of two are shown, and the largest."""


def choice_bound(n: int) -> float:
    """Returns  log n − (n − 1) / n,  in nats: the most that KL grows by choosing one of n samples.

    >>> [round(choice_bound(n), 3) for n in (1, 2, 8)]
    [0.0, 0.193, 1.204]
    """
    return math.log(n) - (n - 1) / n


def tell_search(rows: Sequence[dict]) -> str | None:
    """Returns what rows that were chosen among candidates took, and what their KL leaves out; None of others."""
    found = [row for row in rows if "search" in row]
    if not found:
        return None
    candidates = sum(row["search"]["candidates"] for row in found) / len(found)
    passes = sum(row["search"].get("passes", row["search"]["tokens"]) for row in found)
    times = passes / max(1, sum(len(row["tokens"]) for row in found))
    told = (
        f"each completion is chosen from {candidates:.3g} candidates on average, for {times:.3g} forward passes a "
        "token; KL is that of the policy that draws them"
    )
    if not all("best-of" in row.get("draw", "best-of").partition(":")[0] for row in found):
        return f"{told}, without the effect of the choices"
    bound = math.fsum(choice_bound(row["search"]["candidates"]) for row in found) / len(found)
    return f"{told}: the choice adds at most {bound:.2f} nats"


def best_weights(scores: Sequence[float], n: int) -> np.ndarray:
    """Returns the share of the subsets of n samples that each sample is the best of; equal ones divide theirs.

    Args:
      scores: of at least n samples.

    >>> best_weights([1.0, 3.0, 2.0], 2).round(3).tolist()
    [0.0, 0.667, 0.333]
    """
    count = len(scores)
    by_rank = np.array([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])
    _, level = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    totals, sizes = (
        np.bincount(level, by_rank[np.argsort(np.argsort(level, kind="stable"))]),
        np.bincount(level),
    )
    return (totals / sizes)[level]


@dataclass(frozen=True)
class BestOf:
    """What the best of n samples is worth at a strength."""

    lambda_: Strength
    n: int
    rewards: dict[str, Estimate]
    """Mean of each reward that all samples have."""
    kl_bound: Estimate
    """The most that KL to the reference can be, in nats: log π/π_ref of the chosen, and `choice_bound`."""
    length: Estimate


def best_of_curves(rows: Sequence[dict], ranking: str) -> list[BestOf]:
    """Returns the best of 1, 2, … samples for each strength, up to the samples that every prompt has.

    Args:
      ranking: a reward of the rows, or log-ratio.

    Raises:
      ValueError: rows lack the reward or have several turns, are chosen among candidates already, or have one sample
        of a prompt only.
    """
    _check(rows, ranking)
    by_strength: dict[Strength, dict[Hashable, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_strength[strength_from_json(row["lambda"])][row["prompt_id"]].append(row)
    found = []
    for strength, prompts in sorted(by_strength.items()):
        most = min(map(len, prompts.values()))
        if most < 2:
            raise ValueError(
                f"--best-of: expected several samples of each prompt, found one at λ = {format_strength(strength)}; "
                "eval.sweep --num-samples=N makes them"
            )
        found += [_at(strength, prompts, ranking, n) for n in _numbers(most)]
    return found


def _numbers(most: int) -> Iterator[int]:
    for n in range(1, most + 1):
        if n <= ALL_UP_TO or n == most or n & (n - 1) == 0:
            yield n


def _at(strength: Strength, prompts: dict[Hashable, list[dict]], ranking: str, n: int) -> BestOf:
    weights = {
        prompt: best_weights([rank(row, ranking) for row in some], n) for prompt, some in prompts.items()
    }

    def mean(value) -> Estimate:
        means = [weights[prompt] @ [value(row) for row in some] for prompt, some in prompts.items()]
        return estimate(means, list(prompts))

    names = dict.fromkeys(name for some in prompts.values() for row in some for name in row["rewards"])
    whole = [
        name
        for name in names
        if all(row["rewards"].get(name) is not None for some in prompts.values() for row in some)
    ]
    return BestOf(
        lambda_=strength,
        n=n,
        rewards={name: mean(lambda row, name=name: row["rewards"][name]) for name in whole},
        kl_bound=mean(lambda row: row["sampling_logprob"] - row["reference_logprob"] + choice_bound(n)),
        length=mean(lambda row: row["length"]),
    )


def rank(row: dict, ranking: str) -> float:
    """Returns what a row is ranked by."""
    if ranking != LOG_RATIO:
        return row["rewards"][ranking]
    aligned = row["aligned_logprob"]
    return (aligned[0] if isinstance(aligned, list) else aligned) - row["reference_logprob"]


def _check(rows: Sequence[dict], ranking: str) -> None:
    """Raises ValueError where the best of rows says nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row["rewards"]))
    if ranking == LOG_RATIO:
        given = [row["aligned_logprob"] for row in rows]
        if None in given or any(isinstance(each, list) and len(each) > 1 for each in given):
            found = "a value head alone" if None in given else "several"
            raise ValueError(f"--best-of: {LOG_RATIO}: expected rows of one aligned model, found {found}")
    elif ranking not in names:
        known = ", ".join(shown(name, 100) for name in [*names, LOG_RATIO])
        raise ValueError(
            f"--best-of: the rows have no reward {shown(ranking, 100)!r}; they have {known} "
            "(--reward=… adds one)"
        )
    elif lacking := sum(row["rewards"].get(ranking) is None for row in rows):
        raise ValueError(
            f"--best-of: expected {shown(ranking, 100)} of every row, found {lacking} of {len(rows)} without it"
        )
    if any(row.get("turn") for row in rows):
        raise ValueError("--best-of: expected prompts of one turn, found several")
    if any("exact" in row for row in rows):
        raise ValueError(
            "--best-of: expected a run without --draw, found draws from the response-level optimum"
        )
    if any("search" in row for row in rows):
        raise ValueError(
            "--best-of: the rows were chosen among candidates already; expected a run without --draw"
        )
