"""What draws from the response-level optimum took, and what they say of its normalizer Z(λ)."""

import math
from collections.abc import Iterator, Sequence

from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength, strength_from_json


def tell_exact(rows: Sequence[dict]) -> str | None:
    """Returns a line for each strength of rows that were drawn from the response-level optimum; None of others."""
    by_strength: dict[tuple, list[dict]] = {}
    for row in rows:
        if "exact" in row:
            by_strength.setdefault(strength_from_json(row["lambda"]), []).append(row)
    return "\n".join(_lines(by_strength)) or None


def _lines(by_strength: dict[tuple, list[dict]]) -> Iterator[str]:
    for strength, rows in sorted(by_strength.items()):
        found = rows[0]["exact"]
        tell = _population if "particles" in found else _chain if "steps" in found else _tried
        yield f"λ = {format_strength(strength)}: {tell(rows)}"


def _tried(rows: Sequence[dict]) -> str:
    found = [row["exact"] for row in rows]
    accepted = sum(each["accepted"] for each in found)
    tries, tokens, cut = (sum(each[name] for each in found) for name in ("tries", "tokens", "cut"))
    told = (
        f"{accepted} of {tries} tries accepted ({accepted / tries:.0%}), {tokens / max(1, accepted):.0f} tokens "
        f"for each; {cut / tries:.0%} of the tries ran into the limit"
    )
    shares = [share for each in _of_prompts(rows) if (share := _log_share(each)) is not None]
    told += (
        f"; log Z {_with_error(shares)}" if shares else "; log Z needs a prompt with two accepted completions"
    )
    if kept := [row for row in rows if not row["exact"]["accepted"]]:
        told += (
            f"; {len(kept)} kept though no try was accepted, of prompt {_named(kept)}: these are not draws from the "
            "optimum"
        )
    return told


def _named(rows: Sequence[dict], most: int = 5) -> str:
    """Returns the ids of rows' prompts, the first of many."""
    ids = [shown(str(each), 40) for each in dict.fromkeys(row["prompt_id"] for row in rows)]
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} others" if len(ids) > most else "")


def _population(rows: Sequence[dict]) -> str:
    found = [row["exact"] for row in rows]
    particles = found[0]["particles"]
    means = {
        name: sum(each[name] for each in found) / len(found)
        for name in ("effective", "resamplings", "ancestors", "cut")
    }
    told = [_log_mean(each) for each in _of_prompts(rows)]
    known = [each for each in told if each > -math.inf]
    without = (
        f"; {len(told) - len(known)} prompts without any weight are not in it"
        if len(known) < len(told)
        else ""
    )
    return (
        f"effective size {means['effective']:.3g} of {particles} at the end, {means['resamplings']:.3g} resamplings, "
        f"{means['ancestors']:.3g} ancestors; {means['cut'] / particles:.0%} ran into the limit; "
        f"log Z {_with_error(known)}{without}"
    )


def _chain(rows: Sequence[dict]) -> str:
    found = [row["exact"] for row in rows]
    steps, moves, tokens, cut = (
        sum(each[name] for each in found) for name in ("steps", "moves", "tokens", "cut")
    )
    return (
        f"{moves} of {steps} proposals taken ({moves / steps:.0%}), {tokens / len(found):.0f} tokens for a completion; "
        f"{cut / (steps + len(found)):.0%} of what was drawn ran into the limit"
    )


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


def _with_error(values: Sequence[float]) -> str:
    """Returns the mean over prompts and its standard error."""
    if not values:
        return "unknown"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"{mean:.3g} ± {math.sqrt(variance / len(values)):.2g} (mean over prompts)"
