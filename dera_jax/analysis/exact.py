"""What draws from the response-level optimum took, and what they say of its normalizer Z(λ)."""

import math
from collections.abc import Sequence

from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength, strength_from_json


def exact_figures(rows: Sequence[dict]) -> dict[str, float]:
    """Returns what the exact draws of one strength took; nothing of rows that are no such draws.

    acceptance and tokens_per_accepted of tries and chains, effective_size, resamplings and ancestors of populations;
    cut: share of what was drawn that ran into the limit; log_z and log_z_error: mean over prompts and its standard
    error, NaN where unknown.
    """
    drawn = [row for row in rows if "exact" in row]
    if not drawn:
        return {}
    found = drawn[0]["exact"]
    figures = _population if "particles" in found else _chain if "steps" in found else _tried
    return figures(drawn)


def tell_exact(rows: Sequence[dict]) -> str | None:
    """Returns a line for each strength of rows that were drawn from the response-level optimum; None of others."""
    by_strength: dict[tuple, list[dict]] = {}
    for row in rows:
        if "exact" in row:
            by_strength.setdefault(strength_from_json(row["lambda"]), []).append(row)
    lines = [
        f"λ = {format_strength(strength)}: {_told(own, exact_figures(own))}"
        for strength, own in sorted(by_strength.items())
    ]
    return "\n".join(lines) or None


def _told(rows: Sequence[dict], figures: dict[str, float]) -> str:
    found = [row["exact"] for row in rows]
    limit = f"{figures['cut']:.0%} of what was drawn ran into the limit"
    if "particles" in found[0]:
        return (
            f"effective size {figures['effective_size']:.3g} of {found[0]['particles']} at the end, "
            f"{figures['resamplings']:.3g} resamplings, {figures['ancestors']:.3g} ancestors; {limit}; "
            f"{_log_z(figures)}{_without(rows)}"
        )
    if "steps" in found[0]:
        moves, steps = (sum(each[name] for each in found) for name in ("moves", "steps"))
        return (
            f"{moves} of {steps} proposals taken ({figures['acceptance']:.0%}), "
            f"{figures['tokens_per_accepted']:.0f} tokens for a completion; {limit}"
        )
    accepted, tries = (sum(each[name] for each in found) for name in ("accepted", "tries"))
    told = (
        f"{accepted} of {tries} tries accepted ({figures['acceptance']:.0%}), "
        f"{figures['tokens_per_accepted']:.0f} tokens for each; {limit}; {_log_z(figures)}"
    )
    if kept := [row for row in rows if not row["exact"]["accepted"]]:
        told += (
            f"; {len(kept)} kept though no try was accepted, of prompt {_named(kept)}: these are not draws from the "
            "optimum"
        )
    return told


def _log_z(figures: dict[str, float]) -> str:
    mean, error = figures["log_z"], figures["log_z_error"]
    if math.isnan(mean):
        return (
            "log Z needs a prompt with two accepted completions"
            if "acceptance" in figures
            else "log Z unknown"
        )
    return f"log Z {mean:.3g}" + ("" if math.isnan(error) else f" ± {error:.2g} (mean over prompts)")


def _without(rows: Sequence[dict]) -> str:
    """Returns how many prompts a population's log Z leaves out."""
    unknown = sum(_log_mean(each) == -math.inf for each in _of_prompts(rows))
    return f"; {unknown} prompts without any weight are not in it" if unknown else ""


def _named(rows: Sequence[dict], most: int = 5) -> str:
    """Returns the ids of rows' prompts, the first of many."""
    ids = [shown(str(each), 40) for each in dict.fromkeys(row["prompt_id"] for row in rows)]
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} others" if len(ids) > most else "")


def _tried(rows: Sequence[dict]) -> dict[str, float]:
    found = [row["exact"] for row in rows]
    accepted = sum(each["accepted"] for each in found)
    tries, tokens, cut = (sum(each[name] for each in found) for name in ("tries", "tokens", "cut"))
    shares = [share for each in _of_prompts(rows) if (share := _log_share(each)) is not None]
    return {
        "acceptance": accepted / tries,
        "tokens_per_accepted": tokens / max(1, accepted),
        "cut": cut / tries,
        **_with_error(shares),
    }


def _population(rows: Sequence[dict]) -> dict[str, float]:
    found = [row["exact"] for row in rows]
    means = {
        name: sum(each[name] for each in found) / len(found)
        for name in ("effective", "resamplings", "ancestors", "cut")
    }
    known = [each for each in map(_log_mean, _of_prompts(rows)) if each > -math.inf]
    return {
        "effective_size": means["effective"],
        "resamplings": means["resamplings"],
        "ancestors": means["ancestors"],
        "cut": means["cut"] / found[0]["particles"],
        **_with_error(known),
    }


def _chain(rows: Sequence[dict]) -> dict[str, float]:
    found = [row["exact"] for row in rows]
    steps, moves, tokens, cut = (
        sum(each[name] for each in found) for name in ("steps", "moves", "tokens", "cut")
    )
    return {
        "acceptance": moves / steps,
        "tokens_per_accepted": tokens / len(found),
        "cut": cut / (steps + len(found)),
    }


def _of_prompts(rows: Sequence[dict]) -> list[list[dict]]:
    found: dict = {}
    for row in rows:
        found.setdefault((row["prompt_id"], row.get("turn", 0)), []).append(row["exact"])
    return list(found.values())


def _log_share(found: Sequence[dict]) -> float | None:
    """Returns log of (k − 1)/(n − 1), which is Z on average, of a prompt's k accepted completions among n tries.

    References: Haldane 1945, On a method of estimating frequencies.
    """
    accepted, tries = (sum(each[name] for each in found) for name in ("accepted", "tries"))
    return math.log((accepted - 1) / (tries - 1)) if accepted > 1 else None


def _log_mean(found: Sequence[dict]) -> float:
    weights = [each["log_weight"] for each in found if each["log_weight"] is not None]
    if not weights:
        return -math.inf
    most = max(weights)
    return most + math.log(math.fsum(math.exp(w - most) for w in weights) / len(found))


def _with_error(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean over prompts and its standard error, NaN where unknown."""
    mean = math.fsum(values) / len(values) if values else math.nan
    variance = (
        math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        if len(values) > 1
        else math.nan
    )
    return {"log_z": mean, "log_z_error": math.sqrt(variance / len(values)) if len(values) > 1 else math.nan}
