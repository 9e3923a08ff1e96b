"""Rows to numbers: means with intervals over prompts, differences from λ = 1, effective sample sizes.

Completions of one prompt resemble each other, so intervals come from drawing prompts, not
completions, with replacement. All strengths share prompts and noise, so a difference of two
strengths is far better known than either mean: it is taken pair by pair.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dera_jax.analysis.estimates import Estimate, estimate, paired_difference
from dera_jax.analysis.exact import exact_figures
from dera_jax.analysis.importance import count_copies, effective_sample_share
from dera_jax.strengths import strength_from_json

ENDED = ("eos", "stop")
"""Finish reasons of completions that were not cut off."""


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
    exact: dict[str, float] = field(default_factory=dict)
    """What draws from the response-level optimum took, see `exact_figures`; empty of others."""


def summarize(rows: Sequence[dict]) -> list[Summary]:
    """Returns a summary of each strength in `rows` (see `results.folder`), in increasing order."""
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
        exact=exact_figures(rows),
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
    if aligned is None:
        return None
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
