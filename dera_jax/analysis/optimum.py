"""The optimum of a reward under a KL penalty, from completions of the reference: what perfect training would give.

  π*(y) = π_ref(y) exp(λ r(y)/β) / Z,      Z = E_ref[exp(λ r/β)]      at the KL strength s = β/λ,

and with  J(π) = E_π[r] − s KL(π ‖ π_ref)  and  J* = s log Z,  of any policy π

  KL(π ‖ π*) = (J* − J(π)) / s.

The mean of exp(r/s) over n completions stands for Z: its logarithm is too small by about (1/share − 1)/(2n) nats on
average, `share` being the effective one, so that both J* and the distances are lower bounds.

Reference: Rafailov et al. 2023, Direct Preference Optimization, Eq. 4.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.curves.groups import Groups, PerPrompt, Rows, grouped
from dera_jax.analysis.estimates import Estimate, estimate, ratio
from dera_jax.common.hashed import hashed_uniform


@dataclass(frozen=True)
class OptimumPoint:
    """The optimum at one strength."""

    lambda_: float
    effective: float
    """Share of the reference's completions that carries its weight, in [0, 1]."""
    log_z: PerPrompt
    kl: PerPrompt
    """KL(π* ‖ π_ref), in nats."""
    figures: Mapping[str, Estimate]
    """reward, kl, length, objective (J*), reference (KL(π_ref ‖ π*))."""


@dataclass(frozen=True)
class Optimum:
    """Completions of the reference with their reward."""

    groups: Groups
    rows: tuple[dict, ...]
    """In the groups' order."""
    reward: Rows
    beta: float
    """KL strength at λ = 1."""

    @property
    def fingerprint(self) -> str:
        """Tells these completions and their rewards from others."""
        told = [
            [row["prompt_id"], row["sample"], row.get("seed"), reward]
            for row, reward in zip(self.rows, self.reward.tolist(), strict=True)
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def log_weights(self, strength: float) -> Rows:
        """Returns λ r/β."""
        return strength * self.reward / self.beta

    def at(self, strength: float) -> OptimumPoint:
        """Returns the optimum at β/λ."""
        groups, log_w = self.groups, self.log_weights(strength)
        total = groups.log_sums(log_w)
        p = np.exp(log_w - total[groups.prompt])
        log_z = total - np.log(groups.sizes)
        reward = groups.sums(p * self.reward)
        plain = groups.sums(self.reward) / groups.sizes
        length = np.array([row["length"] for row in self.rows], np.float64)
        kl = strength * reward / self.beta - log_z
        found = {
            "reward": reward,
            "kl": kl,
            "length": groups.sums(p * length),
            "objective": self.beta / strength * log_z if strength else plain,
            "reference": log_z - strength * plain / self.beta,
        }
        figures = {name: estimate(values, groups.prompts) for name, values in found.items()}
        return OptimumPoint(strength, groups.effective(p), log_z, kl, figures)


def optimum_of(rows: Sequence[dict], reward: str, beta: float) -> Optimum:
    """Returns the optimum of a reward, from rows at λ = 0 that all have it.

    Args:
      beta: KL strength at λ = 1, above 0.
    """
    groups, order = grouped(rows)
    ordered = tuple(rows[n] for n in order)
    values = np.array([row["rewards"][reward] for row in ordered], np.float64)
    return Optimum(groups, ordered, values, beta)


@dataclass(frozen=True)
class Draw:
    """A completion of the reference that stands for one of the optimum."""

    row: int
    """Its number."""
    tries: int
    """Completions that were looked at for it."""
    accepted: bool
    """Whether it is an exact sample; else it was drawn in proportion to the weights."""


def draws(
    optimum: Optimum, strength: float, samples: int, largest: float | None, seed: int
) -> list[list[Draw]]:
    """Returns samples of the optimum for each prompt.

    A completion is accepted with probability exp(λ (r − largest)/β). Where too few are, the others are drawn from
    all of the prompt's by their weights.

    Args:
      largest: a bound of the reward; None: there is none, and nothing is accepted.
      seed: of the numbers that accept.
    """
    groups = optimum.groups
    log_u = np.log([hashed_uniform("optimum", seed, row["prompt_id"], row["sample"]) for row in optimum.rows])
    bound = np.inf if largest is None else largest
    accepted = log_u < (strength * (optimum.reward - bound) / optimum.beta if strength else 0.0)
    log_w = optimum.log_weights(strength)
    found = []
    for prompt, start, size in zip(groups.prompts, groups.starts, groups.sizes, strict=True):
        own = np.flatnonzero(accepted[start : start + size])[:samples]
        tries = np.diff(own, prepend=-1)
        exact = [Draw(int(start + n), int(count), True) for n, count in zip(own, tries, strict=True)]
        edges = np.cumsum(np.exp(log_w[start : start + size] - log_w[start : start + size].max()))
        for sample in range(len(exact), samples):
            u = hashed_uniform("weights", seed, prompt, sample, strength)
            place = min(int(np.searchsorted(edges, u * edges[-1], side="right")), int(size) - 1)
            exact.append(Draw(int(start + place), int(size), False))
        found.append(exact)
    return found


@dataclass(frozen=True)
class Distance:
    """How far completions of a policy say that it is from the optimum."""

    lambda_: float
    """Strength of the completions."""
    beta: float
    """KL strength whose optimum it is: β/λ of the completions."""
    reward: Estimate
    kl: Estimate
    objective: Estimate
    """J(π)"""
    best: Estimate
    """J*"""
    distance: Estimate
    """KL(π ‖ π*), in nats."""
    share: Estimate
    """(J(π) − J(π_ref)) / (J* − J(π_ref)), at most 1 and below 0 where training made it worse; NaN where nothing can be
    gained."""
    prompts: int


def distance(optimum: Optimum, rows: Sequence[dict], reward: str, strength: float, beta: float) -> Distance:
    """Returns the distance of the policy that drew rows from the optimum at the KL strength `beta`.

    Args:
      rows: of one policy, all with the reward; those of prompts that the optimum does not have are left out.
      strength: theirs.
    """
    point = optimum.at(optimum.beta / beta)
    places = {prompt: n for n, prompt in enumerate(optimum.groups.prompts)}
    known = [row for row in rows if row["prompt_id"] in places]
    groups, order = grouped(known)

    def mean_of(values: Sequence[float]) -> PerPrompt:
        return groups.sums(np.array([values[n] for n in order], np.float64)) / groups.sizes

    def over_prompts(values: PerPrompt) -> Estimate:
        return estimate(values, groups.prompts)

    values = mean_of([row["rewards"][reward] for row in known])
    kl = mean_of([row["kl_to_reference"] for row in known])
    here = [places[prompt] for prompt in groups.prompts]
    best = beta * point.log_z[here]
    plain = (optimum.groups.sums(optimum.reward) / optimum.groups.sizes)[here]
    own = values - beta * kl
    return Distance(
        lambda_=strength,
        beta=beta,
        reward=over_prompts(values),
        kl=over_prompts(kl),
        objective=over_prompts(own),
        best=over_prompts(best),
        distance=over_prompts((best - own) / beta),
        share=ratio(own - plain, best - plain),
        prompts=len(groups.prompts),
    )
