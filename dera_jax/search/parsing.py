"""Draws from what `--draw` says."""

import re

from dera_jax.decoding.complete import Draw, complete
from dera_jax.search.best_of import best_of, best_of_poisson, soft_best_of
from dera_jax.search.blocks import beams, blocks, rejection, robust_blocks, soft_blocks
from dera_jax.search.lookahead import lookahead
from dera_jax.search.notation import DRAWS, split_draw
from dera_jax.search.scores import parse_score


def parse_draw(text: str, plain: Draw = complete) -> Draw:
    """Returns the draw that `mixture`, `best-of:N:SCORE`, … says; files and modules of a score are read now.

    Raises:
      ValueError: an unknown draw or score, a part is missing, or a number is out of its range.
    """
    if text == "mixture":
        return plain
    name, numbers, spec = split_draw(text)
    read = [_number(number, letter) for number, letter in zip(numbers, DRAWS[name], strict=True)]
    return MAKERS[name](*read, parse_score(spec), plain=plain)


def _sampled(*given, plain: Draw):
    return lookahead(*given, sampled=True, plain=plain)


def _lookahead_beams(b: int, *given, plain: Draw):
    return lookahead(*given, beams=b, plain=plain)


MAKERS = {
    "best-of": best_of,
    "best-of-poisson": best_of_poisson,
    "soft-best-of": soft_best_of,
    "blocks": blocks,
    "soft-blocks": soft_blocks,
    "robust-blocks": robust_blocks,
    "beams": beams,
    "rejection": rejection,
    "lookahead": lookahead,
    "sampled-lookahead": _sampled,
    "lookahead-beams": _lookahead_beams,
}
"""Name of a draw -> what makes it of its numbers and its score."""
REAL = {"MU": "a number above 0", "BETA": "a number above 0", "SHARE": "a number between 0 and 1"}
"""Numbers that need not be whole."""


def _number(text: str, letter: str) -> int | float:
    if letter in REAL:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{letter}: expected {REAL[letter]}, got {text!r:.40}") from None
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        least = 0 if letter == "L" else 1
        raise ValueError(f"{letter}: expected a whole number, at least {least}, got {text!r:.40}")
    return int(text)
