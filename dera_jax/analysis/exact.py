"""What draws from the response-level optimum took, and what they say of its normalizer Z(λ)."""

import math
from collections.abc import Iterator, Sequence

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
        tell = _population if "particles" in rows[0]["exact"] else _tried
        yield f"λ = {format_strength(strength)}: {tell(rows)}"


def _tried(rows: Sequence[dict]) -> str:
    found = [row["exact"] for row in rows]
    accepted = [each for each in found if each["log_weight"] is None]
    tries, tokens = (sum(each[name] for each in found) for name in ("tries", "tokens"))
    kept = len(found) - len(accepted)
    return (
        f"{len(accepted) / tries:.3g} of {tries} completions accepted, {tokens / max(1, len(accepted)):.0f} tokens for "
        f"each; {sum(each['cut'] for each in found) / tries:.0%} cut off by the limit; "
        f"log Z {_with_error([_log_share(each) for each in _of_prompts(rows)])}"
        + (f"; {kept} kept with their weights, as no try was accepted" if kept else "")
    )


def _population(rows: Sequence[dict]) -> str:
    found = [row["exact"] for row in rows]
    particles = found[0]["particles"]
    means = {
        name: sum(each[name] for each in found) / len(found)
        for name in ("effective", "resamplings", "ancestors", "cut")
    }
    told = [_log_mean(each) for each in _of_prompts(rows)]
    return (
        f"effective size {means['effective']:.3g} of {particles} at the end, {means['resamplings']:.3g} resamplings, "
        f"{means['ancestors']:.3g} ancestors; {means['cut'] / particles:.0%} cut off by the limit; "
        f"log Z {_with_error([each for each in told if each > -math.inf])}"
    )


def _of_prompts(rows: Sequence[dict]) -> list[list[dict]]:
    found: dict = {}
    for row in rows:
        found.setdefault((row["prompt_id"], row.get("turn", 0)), []).append(row["exact"])
    return list(found.values())


def _log_share(found: Sequence[dict]) -> float:
    """Returns the logarithm of the share of a prompt's tries that were accepted; of none, that of less than one."""
    accepted = sum(each["log_weight"] is None for each in found)
    return math.log(max(accepted, 0.5) / sum(each["tries"] for each in found))


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
