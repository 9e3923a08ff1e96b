"""The gap between DeRa and retrained models taken apart, for the reward and for the KL divergence.

  DeRa − retrained = (DeRa − Eq. 5)          per-token error: words are mixed, not whole responses
                   + (Eq. 5 − optimum)       training error of the aligned model
                   + (optimum − retrained)   training error of the retrained model, with the other sign

Eq. 5 of the same pair comes from DeRa's completions, weighted by Π zₜ; the optimum at β/λ from the reference's,
weighted by exp(λ r/β). Both are means of weights within each prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.analysis.optimum import optimum_of
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.certificates import NAME, judged
from scripts.reproduce.evidence import Rows
from scripts.reproduce.spread import Difference, gap
from scripts.reproduce.subjects import Subject

PARTS = ("per-token error", "aligned model's training", "retrained model's training")
QUANTITIES = ("reward", "KL")
PerPrompt = Mapping[object, float]


@dataclass(frozen=True)
class Parts:
    """A strength."""

    strength: float
    means: Mapping[str, Mapping[str, float]]
    """By quantity: DeRa, Eq. 5, optimum and retrained."""
    total: Mapping[str, Difference]
    """By quantity: DeRa less retrained, with what prompts and trainings leave open."""
    effective: float
    """Completions that DeRa's weights are worth, of a prompt's, on average."""

    def parts(self, quantity: str) -> dict[str, float]:
        """Returns the three parts, whose sum is the gap."""
        at = self.means[quantity]
        steps = ("DeRa", "Eq. 5", "optimum", "retrained")
        return {name: at[one] - at[other] for name, one, other in zip(PARTS, steps, steps[1:], strict=False)}


def decompose(subject: Subject) -> list[Parts]:
    """Returns the parts at every strength of both ways but 0 and 1; none where the reference's rows are missing."""
    found = subject.evidence
    reference = judged(found.dera.get((0.0, 0), []), subject)
    if not reference:
        return []
    optimum = optimum_of(reference, NAME, found.experiment.beta)
    strengths = sorted({s for s, _ in found.dera} & {s for s, _ in found.retrained} - {0.0, 1.0})
    return [_at(subject, optimum, strength) for strength in strengths]


def _at(subject: Subject, optimum, strength: float) -> Parts:
    found = subject.evidence
    point = optimum.at(strength)
    quantities = {"reward": subject.reward, "KL": qu.kl}
    dera, retrained = (_by_seed(rows, strength) for rows in (found.dera, found.retrained))
    mixtures = [response_mixture(rows, subject.reward, strength) for rows in dera]
    best = {"reward": point.figures["reward"].mean, "KL": point.figures["kl"].mean}
    means = {
        name: {
            "DeRa": _mean(dera, quantity),
            "Eq. 5": float(np.mean([each[name] for each in mixtures])),
            "optimum": best[name],
            "retrained": _mean(retrained, quantity),
        }
        for name, quantity in quantities.items()
    }
    total = {name: gap(found, quantity, [strength]) for name, quantity in quantities.items()}
    return Parts(strength, means, total, float(np.mean([each["effective"] for each in mixtures])))


def response_mixture(rows: Rows, reward, strength: float) -> dict[str, float]:
    """Returns reward and KL of Eq. 5, as its own completions of realigned decoding tell, and what they are worth.

    With weights w = Π zₜ and ℓ = log π_al/π_ref:  E[r] = Σ w r/Σ w,  KL = λ E[ℓ] − log Z,  Z the mean weight; a
    completion that was cut off is a whole response of the limit's length, and its weight is known too.
    """
    by: dict[object, list[dict]] = {}
    for row in rows:
        by.setdefault(row["prompt_id"], []).append(row)
    found = {"reward": [], "KL": [], "effective": []}
    for some in by.values():
        logs = np.array([row["log_normalizer"] for row in some])
        weights = np.exp(logs - logs.max())
        ratio = np.array([row["aligned_logprob"] - row["reference_logprob"] for row in some])
        log_z = logs.max() + np.log(weights.mean())
        weights = weights / weights.sum()
        found["reward"].append(weights @ np.array([reward(row) for row in some]))
        found["KL"].append(strength * (weights @ ratio) - log_z)
        found["effective"].append(1 / (weights**2).sum())
    return {name: float(np.mean(values)) for name, values in found.items()}


def _by_seed(rows: Mapping[tuple[float, int], Rows], strength: float) -> list[Rows]:
    return [some for (at, _), some in sorted(rows.items()) if at == strength]


def _mean(seeds: Sequence[Rows], quantity: ev.Quantity) -> float:
    """Returns the mean over prompts and trainings."""
    return float(np.mean([np.mean(list(ev.prompt_means(rows, quantity).values())) for rows in seeds]))


def decomposition_lines(subject: Subject, every: Sequence[Parts]) -> list[str]:
    """Returns the tables of an experiment, one for each quantity."""
    lines = []
    for name in QUANTITIES:
        unit = " (nats)" if name == "KL" else ""
        lines += [
            f"\n| λ | DeRa − retrained, {name}{unit} | 95 % | " + " | ".join(PARTS) + " | noise (1 SE) |",
            "|--:|--:|---|--:|--:|--:|--:|",
        ]
        for each in every:
            total, parts = each.total[name], each.parts(name)
            low, high = total.estimate.low, total.estimate.high
            lines.append(
                f"| {each.strength:g} | {total.estimate.mean:+.3f} | [{low:+.3f}, {high:+.3f}] | "
                + " | ".join(f"{parts[part]:+.3f}" for part in PARTS)
                + f" | {total.noise:.3f} |"
            )
    return lines
