"""--steer: which aligned models are steered, by what and how strongly."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength, parse_strengths

ENDING = ".safetensors"
NONE = "none"


def add_steer_option(group: argparse._ArgumentGroup) -> None:
    """Adds the option to the models'."""
    group.add_argument(
        "--steer", metavar="FILE[@STRENGTH][,…]",
        help="steer the aligned model by the vectors of eval.steer, times STRENGTH (default 1); without --aligned it "
        "is the reference that is steered; one for all aligned models, or one for each, such as none,FILE@2",
    )  # fmt: skip


def split_steer(text: str) -> list[tuple[str, float] | None]:
    """Returns file and strength of each part; None where a model is not steered.

    Raises:
      ValueError: no file of that kind, or no strength.

    >>> split_steer("a.safetensors@-1/2,none,b.safetensors")
    [('a.safetensors', -0.5), None, ('b.safetensors', 1.0)]
    """
    return [None if part == NONE else _file_and_strength(part, text) for part in text.split(",")]


def with_strength(text: str, strength: float) -> str:
    """Returns a value of --steer, which has no strength itself, with one for all that it steers.

    >>> with_strength("a.safetensors,none,b.safetensors", 0.5)
    'a.safetensors@0.5,none,b.safetensors@0.5'

    Raises:
      ValueError: it has one, or steers nothing.
    """
    parts = split_steer(text)
    if not any(parts):
        raise ValueError(f"--sweep=steer: expected a file in --steer, found {shown(text, 80)}")
    if any(part and part[1] != 1 for part in parts):
        raise ValueError(f"--sweep=steer: expected --steer without a strength, found {shown(text, 80)}")
    number = format_strength((strength,))
    return ",".join(NONE if each is None else f"{each[0]}@{number}" for each in parts)


def read_steer(text: str | None, count: int) -> list[Callable]:
    """Returns what makes each of `count` aligned policies the one that --steer asks for; files are read at once.

    Raises:
      ValueError: another number of files, or one that cannot be read.
    """
    if text is None:
        return [lambda policy: policy] * count
    parts = split_steer(text)
    if len(parts) not in (1, count):
        raise ValueError(
            f"--steer: expected one file, or one for each of {count} aligned models, found {len(parts)}"
        )
    return list(map(_steerer, parts * count if len(parts) == 1 else parts))


def _steerer(part: tuple[str, float] | None) -> Callable:
    if part is None:
        return lambda policy: policy
    from dera_jax.policies.steering import read_steering, steered

    steering, strength = read_steering(part[0]), part[1]
    return lambda policy: steered(policy, steering, strength)


def _file_and_strength(part: str, text: str) -> tuple[str, float]:
    """Returns both parts; a file of the whole name wins."""
    file, at, number = part.rpartition("@")
    if not at or part.endswith(ENDING) or Path(part).is_file():
        file, number = part, "1"
    if not file.endswith(ENDING):
        raise ValueError(
            f"--steer: expected FILE{ENDING}[@STRENGTH], found {shown(repr(part), 80)} in {shown(text, 120)}"
        )
    try:
        ((strength,),) = parse_strengths(number)
    except ValueError:  # no number, or several
        told = "expected one number such as 0.5 or 1/6 behind the @"
        raise ValueError(f"--steer: {told}, found {shown(repr(number), 60)}") from None
    return file, strength
