"""What is told of how completions were decoded: a table, JSON, and whether it is what was expected."""

import math
from collections.abc import Mapping
from dataclasses import asdict

from dera_jax.analysis.decoding_law import SAME, SEEN, Cut, Law, Range

EXPECTED = {"lambda": (-1e6, 1e6), "temperature": (0.0, 1e6), "top_k": (1, 1e9), "top_p": (0.0, 1.0)}
"""What may be expected, and between which numbers."""
COLD = 0.25
"""A temperature below which sampling hardly differs from greedy decoding."""
GREEDY = 0.99
"""Share of most probable words that is worth a line."""


def parse_expected(text: str | None) -> dict[str, float | None]:
    """Returns what `lambda=1,temperature=0.7,top_k=50` says; None is `none`, of top_k and top_p.

    Raises:
      ValueError: another name, the same twice, or no number that it may have.

    >>> parse_expected("lambda=1,top_k=none")
    {'lambda': 1.0, 'top_k': None}
    """
    found: dict[str, float | None] = {}
    for part in text.split(",") if text else ():
        name, _, value = (each.strip() for each in part.partition("="))
        name = name.replace("-", "_")
        if name not in EXPECTED or name in found:
            wrong = "twice" if name in found else "which is none of them"
            raise ValueError(
                f"--expect: expected each of {', '.join(EXPECTED)} once, found {name[:40]!r} {wrong}"
            )
        found[name] = None if value == "none" and name.startswith("top_") else _number(name, value)
    return found


def _number(name: str, text: str) -> float:
    low, high = EXPECTED[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (name == "top_k" and value % 1) or (name == "top_p" and not value):
        kind = "a whole number" if name == "top_k" else "a number"
        raise ValueError(f"--expect: {name}: expected {kind} from {low:g} to {high:g}, found {text[:40]!r}")
    return value


def verdicts(law: Law, expected: Mapping[str, float | None]) -> dict[str, bool | None]:
    """Returns whether each expectation lies in the interval that was found; None: the tokens do not tell."""
    ranges = {"lambda": law.lambda_, "temperature": law.temperature}
    return {
        name: _lies_in(ranges[name], value) if name in ranges else _agrees(getattr(law, name), value)
        for name, value in expected.items()
    }


def _lies_in(found: Range | None, value: float | None) -> bool | None:
    return None if found is None or value is None else found.low <= value <= found.high


def _agrees(found: Cut | None, value: float | None) -> bool | None:
    if found is None:
        return None
    if value is None or found.value is None:
        # None was seen: any that cuts nothing off here may have been there.
        return found.value is None and (value is None or found.low is None or value >= found.low)
    return found.low <= value <= found.high


def law_to_table(law: Law, completions: int, prompts: int, beta: float | None) -> str:
    """Returns what was found, a line for each figure."""
    lines = [
        ("λ", _strength(law)),
        *_beta_line(law, beta),
        ("temperature", _temperature(law)),
        ("top-k", _cut(law.top_k, "top-k", ".0f")),
        ("top-p", _cut(law.top_p, "top-p", ".3f")),
        *_greedy_line(law),
        ("tokens", f"{law.tokens} of {completions} completions of {prompts} prompts"),
        ("KL(aligned ‖ reference)", f"{law.divergence:.3g} nats per token"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _strength(law: Law) -> str:
    if law.lambda_ is None:
        return "the models are too alike to tell"
    # Where every token is the most probable word, no λ of them is likelier than another.
    return f"[{law.lambda_.low:.3f}, {law.lambda_.high:.3f}]" if law.greedy else _told(law.lambda_)


def _temperature(law: Law) -> str:
    high = f"{law.temperature.high:.3g}"
    if law.greedy and law.temperature.high > COLD:
        return f"from 0 to {high}: too few tokens to tell greedy decoding from sampling"
    return f"0 (greedy; below {high})" if law.greedy else _told(law.temperature)


def _told(found: Range) -> str:
    return f"{found.value:.3f}  [{found.low:.3f}, {found.high:.3f}]"


def _beta_line(law: Law, beta: float | None) -> list[tuple[str, str]]:
    if beta is None or law.lambda_ is None or law.greedy or law.lambda_.value <= 0:
        return []
    return [("β/λ", f"{beta / law.lambda_.value:.3g}  (β = {beta:g})")]


def _greedy_line(law: Law) -> list[tuple[str, str]]:
    if law.most_probable < GREEDY:
        return []
    low, high = law.most_probable_at
    return [
        ("most probable word", f"{law.most_probable:.2%} of the tokens, for λ in [{low:.3f}, {high:.3f}]")
    ]


def _cut(found: Cut | None, name: str, form: str) -> str:
    if found is None:
        return "cannot be told of greedy tokens"
    if found.value is None:
        least = f": {name} ≥ {found.low:{form}}" if found.low is not None else ""
        return f"none seen{least}, or none"
    value = f"{found.value:{form}}"
    interval = f"  [{found.low:{form}}, {found.high:{form}}]" if found.low != found.high else ""
    return f"{value}{interval}  (tokens look so without it with probability {_chance(found.gain)})"


def _chance(gain: float) -> str:
    return f"10^{-gain / math.log(10):.0f}" if gain > 14 else f"{math.exp(-gain):.1g}"


def verdict_line(found: Mapping[str, bool | None], expected: Mapping[str, float | None]) -> str:
    """Returns one line: what agrees with what was expected, and what does not."""
    words = {True: "agrees", False: "disagrees", None: "cannot be told"}
    shown = {name: "none" if value is None else f"{value:g}" for name, value in expected.items()}
    return "; ".join(f"{name}={shown[name]} {words[agrees]}" for name, agrees in found.items())


def law_to_json(law: Law, beta: float | None) -> dict:
    """Returns what was found, null where there is no number."""
    told = {
        **{("lambda" if name == "lambda_" else name): value for name, value in vars(law).items()},
        "lambda": law.lambda_ and law.lambda_._asdict(),
        "temperature": law.temperature._asdict(),
        "top_k": law.top_k and asdict(law.top_k),
        "top_p": law.top_p and asdict(law.top_p),
        "most_probable_at": list(law.most_probable_at),
        "beta": beta,
        "level": 0.95,
        "seen_from": SEEN,
        "alike_below": SAME,
    }
    return _finite(told)


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
