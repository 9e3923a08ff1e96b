"""Settings, validated where they are made. Standard library only."""

import math
from collections.abc import Collection
from dataclasses import fields


def take_plain_numbers(settings: object) -> None:
    """Replaces the numbers of NumPy and JAX in a frozen dataclass by Python's own, which files can hold."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            object.__setattr__(settings, field.name, value.item())


MOST = 10**9
"""Of anything that is counted; more is a slip of the finger, and would end the machine before the command."""


def check_count(name: str, value: int, least: int = 1, most: int = MOST) -> None:
    """Raises ValueError unless `value` is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number, at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name}: expected a whole number, at most {most}, got {value!s:.40}")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless `value` is finite and in [low, high]."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def check_seed(seed: int) -> None:
    """Raises ValueError unless `seed` is an integer from 0 to 2⁶³ − 1."""
    check_count("seed", seed, least=0, most=2**63 - 1)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
