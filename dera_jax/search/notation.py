"""How searching draws and their scores are written: `best-of:8:length:40:60*2+log-ratio`.

Nothing is looked up, read or run here, so that a text from anybody can be taken apart.
"""

import math
import re

from dera_jax.common.shown import shown
from dera_jax.rewards.registry import KNOWN

LOG_RATIO = "log-ratio"
"""Σₜ log π_aligned − log π_reference of the completion's tokens."""
FIGURES = (LOG_RATIO, "logprob", "reference-logprob")
"""The scores that need no reward: log-ratio, and log π under the realigned policy or the reference."""
VALUE = "value"
"""The score `value:DIR`, of a value head: V of a candidate's last token."""
SCORES = ", ".join([*(form for _, form, _ in KNOWN.values()), f"{VALUE}:DIR", *FIGURES])
"""The scores there are, for errors and --help."""
DRAWS = {
    "best-of": ("N",),
    "best-of-poisson": ("MU",),
    "soft-best-of": ("N", "BETA"),
    "blocks": ("K", "M"),
    "soft-blocks": ("K", "M", "BETA"),
    "robust-blocks": ("K", "M", "BETA"),
    "beams": ("B", "K", "M"),
    "rejection": ("N", "M", "SHARE"),
    "lookahead": ("K", "L", "M"),
    "sampled-lookahead": ("K", "L", "M"),
    "lookahead-beams": ("B", "K", "L", "M"),
}
"""Name of a draw -> the numbers between it and its score."""
EXACT = {"exact": (), "particles": ("N",), "metropolis": ("N",)}
"""The same of the draws from the response-level optimum, which have no score."""
LIMIT_MEANS = ("ended", "absorb")
"""What a limit of length means to them: the law is of completions that end within it; or those cut off are members."""
SEARCHES = ", ".join(":".join([name, *numbers, "SCORE"]) for name, numbers in DRAWS.items())
"""How the searches are written."""
FORMS = ", ".join([SEARCHES, *(":".join([name, *numbers]) for name, numbers in EXACT.items())])
"""How all draws are written."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WITH_ARGUMENT = "|".join([*(kind for kind, (_, form, _) in KNOWN.items() if ":" in form), VALUE])
_ALONE = "|".join([*(kind for kind, (_, form, _) in KNOWN.items() if ":" not in form), *FIGURES])
# A + also stands within scores, as in model:BASE+ADAPTER.
_PLUS = re.compile(rf"\+(?=(?:{_WITH_ARGUMENT}):|(?:{_ALONE})(?:[*+]|$))")
_WEIGHTED = re.compile(rf"(\*{_NUMBER})\+")


def split_draw(text: str) -> tuple[str, list[str], str]:
    """Returns a draw's name, its numbers as texts, and its score.

    Raises:
      ValueError: an unknown name, or parts are missing.

    >>> split_draw("soft-best-of:4:0.5:length:40:60")
    ('soft-best-of', ['4', '0.5'], 'length:40:60')
    """
    name, _, rest = text.partition(":")
    if name not in DRAWS:
        raise ValueError(f"unknown draw {shown(text, 80)!r}; known: mixture, {FORMS}")
    *numbers, score = (rest.split(":", len(DRAWS[name])) + [""] * 5)[: len(DRAWS[name]) + 1]
    if not all(numbers) or not score:
        form = ":".join([name, *DRAWS[name], "SCORE"])
        raise ValueError(f"expected {form}, found {shown(text, 80)!r}; SCORE is one of {SCORES}")
    return name, numbers, score


def split_score(text: str) -> list[tuple[str, float]]:
    """Returns the scores of a sum, each with its weight.

    A + separates scores behind a weight and before a known score; the last * of a score begins its weight.

    Raises:
      ValueError: a score is missing or unknown, or its weight is no finite number.

    >>> split_score("length:40:60*2+log-ratio")
    [('length:40:60', 2.0), ('log-ratio', 1.0)]
    """
    parts = _PLUS.sub("\0", _WEIGHTED.sub("\\1\0", text)).split("\0")
    return [_weighted(part, text) for part in parts]


def _weighted(part: str, whole: str) -> tuple[str, float]:
    spec, star, weight = part.rpartition("*") if "*" in part else (part, "", "1")
    if star and not (re.fullmatch(_NUMBER, weight) and math.isfinite(float(weight))):
        raise ValueError(
            f"expected SCORE*WEIGHT with a finite number as WEIGHT, found {shown(part, 80)!r}; "
            "a * or + inside a score is written \\x2a or \\x2b"
        )
    if not spec:
        raise ValueError(f"a score is missing in {shown(whole, 80)!r}; known: {SCORES}")
    if spec not in FIGURES and spec.partition(":")[0] not in (*KNOWN, VALUE):
        raise ValueError(f"unknown score {shown(spec, 80)!r}; known: {SCORES}")
    return spec, float(weight)
