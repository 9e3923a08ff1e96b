"""Strengths to decode next: where the best lies at an edge, or between two."""

import math
from collections.abc import Sequence
from fractions import Fraction

from dera_jax.analysis.tuning.choose import Choice
from dera_jax.strengths import Strength, format_strength


def wider_ranges(strengths: Sequence[Strength], chosen: Strength) -> list[str | None]:
    """Returns, of each aligned model, the range to try where the chosen strength is the last of its side.

    >>> wider_ranges([(0.0,), (0.5,), (1.0,)], (1.0,))
    ['1.5:2:0.5']
    """
    axes = [sorted({strength[i] for strength in strengths}) for i in range(len(chosen))]
    return [_wider(axis, value) for axis, value in zip(axes, chosen, strict=True)]


def _wider(axis: Sequence[float], value: float) -> str | None:
    """Returns the range beyond the end of an axis that `value` is, in its last step; twice as far, or to 0."""
    if len(axis) < 2 or value not in (axis[0], axis[-1]):
        return None
    exact = [Fraction(str(x)) for x in axis]
    top = value == axis[-1]
    end, step = (exact[-1], exact[-1] - exact[-2]) if top else (exact[0], exact[1] - exact[0])
    step = Fraction(f"{float(step):.3g}")
    if not top and end > 0:
        step = Fraction(f"{float(end / 5):.3g}")
        return f"0:{_text(4 * step)}:{_text(step)}"
    count = min(max(1, math.ceil(abs(end) / step)), 10) if top else 5
    if top:
        return f"{_text(end + step)}:{_text(end + count * step)}:{_text(step)}"
    return f"{_text(end - count * step)}:{_text(end - step)}:{_text(step)}"


def _text(value: Fraction) -> str:
    return format_strength((float(value),))


def finer_range(choice: Choice) -> tuple[Strength, str] | None:
    """Returns the neighbour of the chosen strength that constraints exclude, and the range between the two.

    None where they exclude neither, or strengths are vectors. Of two, the one farther from the reference.
    """
    if len(choice.strength) > 1:
        return None
    axis = sorted(choice.satisfied)
    at = axis.index(choice.strength)
    excluded = [s for s in axis[max(at - 1, 0) : at + 2] if not choice.satisfied[s]]
    if not excluded:
        return None
    other = max(excluded, key=lambda s: abs(s[0]))
    ends = [Fraction(str(x)) for x in sorted((choice.strength[0], other[0]))]
    step = Fraction(f"{float((ends[1] - ends[0]) / 5):.3g}")
    return other, f"{_text(ends[0] + step)}:{_text(ends[0] + 4 * step)}:{_text(step)}"
