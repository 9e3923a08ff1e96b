"""Strengths as people write them: `0,0.5,1`, `0:2:0.2`, `1/6`, `0.5+0.5`, `0:1:0.5x0:1:0.5`.

A strength is one number λ per aligned model. Its identity is the shortest text of its float64, so
ranges are computed in exact fractions: `0:2:0.2` holds 0.6, never 0.6000000000000001.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from numbers import Real

Strength = tuple[float, ...]
"""λ of each aligned model; any finite real numbers."""
PER_PROMPT = "prompt"
"""`--lambda=prompt`: each prompt brings its own `lambda`. The caller recognizes it."""
MAX_STRENGTHS = 10_000
"""A longer range or grid is a slip of the keyboard."""
_NUMBER = re.compile(r"-?(?=\.?\d)\d{0,400}\.?\d{0,400}([eE]-?\d{1,3})?(/\d{1,400})?", re.ASCII)
_EXPONENT_WITH_PLUS = re.compile(r"[\d.][eE]\+\d")


def parse_strengths(text: str, num_aligned: int = 1) -> tuple[Strength, ...]:
    """Returns the strengths that `text` lists, each once, in the order written.

    Items stand between commas. With one aligned model an item is a number (`0.5`, `-1`, `1/6`) or a
    range `start:stop:step`, stop included where the steps meet it. With several it is one number per
    model joined by `+`, or a grid: numbers or ranges joined by `x`, the last varying fastest.

    Args:
      text: what follows `--lambda=`.
      num_aligned: number of aligned models, ≥ 1.

    Raises:
      ValueError: an item is not a finite number, range, vector or grid of `num_aligned` models.

    >>> parse_strengths("0:1:0.5,1/4")
    ((0.0,), (0.5,), (1.0,), (0.25,))
    >>> parse_strengths("0.5+0.5,0:1:1x2", num_aligned=2)
    ((0.5, 0.5), (0.0, 2.0), (1.0, 2.0))
    """
    strengths: dict[Strength, None] = {}
    for item in text.split(","):
        strengths.update(dict.fromkeys(_item(item.strip(), text, num_aligned)))
    return tuple(strengths)


def as_strengths(value: object, num_aligned: int = 1, name: str = "lambdas") -> tuple[Strength, ...]:
    """Returns strengths from what Python code gives, each once, in the order given.

    Args:
      value: text as of --lambda, a number (of NumPy or JAX too), or a sequence of these; with several
        aligned models also of sequences of one number per model.
      num_aligned: number of aligned models.
      name: of the argument, for errors.

    Raises:
      TypeError: it is something else.
      ValueError: text that cannot be read, a number that is not finite, or another count of them.

    >>> as_strengths([0, "1/4", "1:2:1"])
    ((0.0,), (0.25,), (1.0,), (2.0,))
    """
    value = _plain(value)
    items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    strengths: dict[Strength, None] = {}
    for item in map(_plain, items):
        strengths.update(dict.fromkeys(_as_strengths(item, num_aligned, name)))
    if not strengths:
        raise ValueError(f"{name}: expected at least one strength, found none")
    return tuple(strengths)


def _as_strengths(item: object, num_aligned: int, name: str) -> tuple[Strength, ...]:
    """Returns the strengths that a text lists, or the one that numbers are."""
    if isinstance(item, str):
        try:
            return parse_strengths(item, num_aligned)
        except ValueError as error:
            raise ValueError(str(error).replace("--lambda: ", f"{name}: ", 1)) from None
    numbers = item if isinstance(item, (list, tuple)) else [item]
    strength = tuple(_real(_plain(number), name) for number in numbers)
    if len(strength) != num_aligned:
        raise ValueError(
            f"{name}: expected a number for each of {num_aligned} aligned models, found {_shown(item)}"
        )
    return (strength,)


def _plain(value: object) -> object:
    """Returns Python's own numbers and lists for those of NumPy and JAX."""
    return value.tolist() if hasattr(value, "tolist") else value


def _real(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name}: expected a number or text such as '1/2', found {_shown(value)}")
    try:
        return _json_number(value if isinstance(value, int) else float(value), name)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, found {_shown(value)}") from None


def _item(item: str, text: str, num_aligned: int) -> list[Strength]:
    """Returns the strengths of one item between commas."""
    if not item:
        raise ValueError(f"--lambda: a number is missing in {text!r}")
    if _EXPONENT_WITH_PLUS.search(item):
        raise ValueError(
            f"--lambda: {item!r} could be an exponent or two models' strengths; write 1e2, not 1e+2"
        )
    if "x" in item:
        axes = [_range(axis, item) for axis in item.split("x")]
    elif "+" in item:
        axes = [[_number(part, item)] for part in item.split("+")]
    else:
        axes = [_range(item, item)]
    if len(axes) != num_aligned:
        raise ValueError(_wrong_length(item, len(axes), num_aligned))
    if math.prod(map(len, axes)) > MAX_STRENGTHS:
        raise ValueError(f"--lambda: {item!r} has more than {MAX_STRENGTHS} strengths")
    return [tuple(float(value) + 0.0 for value in point) for point in itertools.product(*axes)]


def _wrong_length(item: str, found: int, num_aligned: int) -> str:
    if num_aligned == 1:
        return f"--lambda: expected one number for the one aligned model, found {found} in {item!r}"
    vector, grid = "+".join(["0.5"] * num_aligned), "x".join(["0:1:0.5"] * num_aligned)
    expected = f"expected a number for each of {num_aligned} aligned models"
    return f"--lambda: {expected}, found {found} in {item!r}; write {vector}, or {grid} for a grid"


def _range(text: str, item: str) -> list[Fraction]:
    """Returns the numbers of `start:stop:step`, or of a single number."""
    parts = text.split(":")
    if len(parts) == 1:
        return [_number(text, item)]
    if len(parts) != 3:
        hint = f"{text}:0.1" if len(parts) == 2 else "start:stop:step"
        what = "has no step" if len(parts) == 2 else "has too many colons"
        raise ValueError(f"--lambda: the range {text!r} {what}; write {hint}")
    start, stop, step = (_number(part, item) for part in parts)
    if step == 0:
        raise ValueError(f"--lambda: the range {text!r} has step 0")
    last = (stop - start) // step
    if last < 0:
        raise ValueError(f"--lambda: the range {text!r} steps away from its stop")
    if last >= MAX_STRENGTHS:
        raise ValueError(f"--lambda: the range {text!r} has more than {MAX_STRENGTHS} strengths")
    return [start + i * step for i in range(last + 1)]


def _number(text: str, item: str) -> Fraction:
    """Returns the exact value of `0.5`, `-1e-2` or `1/6`."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(
            f"--lambda: expected a finite number such as 0.5 or 1/6, found {text!r} in {item!r}; "
            "write several as 0,0.5,1 or 0:2:0.5"
        )
    numerator, _, denominator = text.partition("/")
    try:
        value = Fraction(numerator) / Fraction(denominator or 1)
        float(value)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"--lambda: {text!r} is not a finite number") from error
    return value


def format_strength(strength: Strength) -> str:
    """Returns a strength's identity: the shortest text of its float64s, joined by `+`.

    `parse_strengths` reads it back. Exponents carry no `+`, which would join models.

    >>> format_strength((0.6,)), format_strength((1.0, -0.5)), format_strength((1e22,))
    ('0.6', '1+-0.5', '1e22')
    """
    return "+".join(_shortest(value) for value in strength)


def _shortest(value: float) -> str:
    mantissa, _, exponent = repr(float(value) + 0.0).partition("e")  # −0.0 + 0.0 is 0.0.
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def strength_to_json(strength: Strength) -> float | list[float]:
    """Returns what a row's `lambda` holds: a number for one aligned model, else a list."""
    values = [float(value) + 0.0 for value in strength]
    return values[0] if len(values) == 1 else values


def strength_from_json(value: object) -> Strength:
    """Returns the strength of a row's `lambda`.

    Raises:
      ValueError: `value` is not a finite number or a list of them.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError("lambda: expected a number or a list of numbers, found an empty list")
    return tuple(_json_number(v, "lambda") for v in values)


def turn_strengths(value: object, where: str) -> tuple[Strength, ...]:
    """Returns the strength of each turn from a prompt's own `lambda`: a number, or one per turn.

    Args:
      value: as read from JSON; of several aligned models, numbers joined by + in a text.
      where: file and line, for the error.

    Raises:
      ValueError: `value` is not a finite number, such a text or a list of them.

    >>> turn_strengths("0.5+0.25", "prompts.jsonl:1")
    ((0.5, 0.25),)
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError(f"{where}: lambda: expected a number, or one per turn, found an empty list")
    return tuple(_own_strength(v, f"{where}: lambda") for v in values)


def _own_strength(value: object, where: str) -> Strength:
    if not isinstance(value, str) or "+" not in value:
        return (_json_number(value, where),)
    try:
        if _EXPONENT_WITH_PLUS.search(value):
            raise ValueError
        return tuple(float(_number(part, value)) + 0.0 for part in value.split("+"))
    except ValueError:
        raise ValueError(
            f"{where}: expected numbers joined by +, such as 0.5+0.25, found {_shown(value)}"
        ) from None


def _json_number(value: object, where: str) -> float:
    """Returns a finite float; true and "1" are no numbers."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value) + 0.0
    raise ValueError(f"{where}: expected a finite number, found {_shown(value)}")


_LARGEST = int(1.7976931348623157e308)
"""An integer, so that comparing with integers of any size is exact. NaN compares False."""


def _shown(value: object) -> str:
    """Returns JSON text, cut to a line's worth."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
