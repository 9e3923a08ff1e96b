"""Draws from the response-level optimum from what `--draw` says."""

import re

from dera_jax.common.shown import shown
from dera_jax.decoding.complete import Draw, complete
from dera_jax.exact.draws import ExactDraw
from dera_jax.exact.metropolis import Metropolis
from dera_jax.exact.particles import Particles
from dera_jax.exact.rejection import Rejection
from dera_jax.search.notation import EXACT


def parse_exact(
    text: str, limit_means: str = "ended", max_tries: int = 1000, plain: Draw = complete
) -> ExactDraw:
    """Returns the draw that `exact`, `particles:N` or `metropolis:N` says.

    Args:
      limit_means: one of `notation.LIMIT_MEANS`.
      max_tries: of `exact`.
      plain: see `ExactDraw`.

    Raises:
      ValueError: an unknown draw, or a number that is missing or out of its range.
    """
    name, *numbers = text.split(":")
    form = ":".join([name, *EXACT.get(name, ())])
    if name not in EXACT or len(numbers) != len(EXACT[name]):
        raise ValueError(f"expected {form}, found {shown(text, 80)!r}")
    if name == "exact":
        return Rejection(limit_means=limit_means, max_tries=max_tries, plain=plain)
    if not re.fullmatch(r"-?[0-9]{1,18}", numbers[0]):
        raise ValueError(f"N: expected a whole number, at least 2, got {numbers[0]!r:.40}")
    kind = Particles if name == "particles" else Metropolis
    return kind(n=int(numbers[0]), limit_means=limit_means, plain=plain)
