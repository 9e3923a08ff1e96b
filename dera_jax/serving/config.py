"""What a server offers and how much it takes on."""

import math
from dataclasses import dataclass

from dera_jax.common.checks import check_count
from dera_jax.decoding.config import DecodeConfig
from dera_jax.strengths import Strength

STEPS = (1, 2, 4, 8, 16)
"""Numbers of steps that a chunk may have: they divide `decoding.room.CHUNK`."""


@dataclass(frozen=True)
class ServeConfig:
    """The settings of a server."""

    name: str
    """Of the pair, as `/v1/models` lists it."""
    lambda_: Strength
    """Of requests that bring none."""
    lambda_range: tuple[float, float]
    """Smallest and largest strength that a client may ask for."""
    decode: DecodeConfig
    """What requests leave open."""
    rows: int = 8
    """Completions that are decoded at a time; ≥ 1."""
    steps: int = STEPS[-1]
    """Tokens that a row draws between two looks at who comes and goes; one of `STEPS`."""
    queue: int = 256
    """Completions that may wait for one of these; ≥ 1."""
    max_body: int = 1 << 20
    """Bytes of a request, at most."""
    api_key: str | None = None
    """What clients must send; None: nothing."""

    def __post_init__(self):
        check_count("rows", self.rows)
        check_count("queue", self.queue)
        if self.steps not in STEPS:
            raise ValueError(f"steps: expected one of {', '.join(map(str, STEPS))}, found {self.steps}")
        least, most = self.lambda_range
        if not (math.isfinite(least) and math.isfinite(most) and least <= most):
            raise ValueError(
                f"lambda_range: expected two finite numbers in order, found {least:g} and {most:g}"
            )
        check_in_range(self.lambda_, self.lambda_range, "lambda")


def check_in_range(strength: Strength, limits: tuple[float, float], name: str) -> None:
    """Raises ValueError where a strength is outside of what is offered."""
    least, most = limits
    if outside := [value for value in strength if not least <= value <= most]:
        raise ValueError(f"{name}: expected {least:g} to {most:g}, found {outside[0]}")
