"""Timings that take turns, and the ratios between them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dera_jax.common.checks import check_count
from dera_jax.decoding.room import CHUNK

LEAST_SECONDS = 0.3
"""A shorter call is repeated within its turn: one of a few milliseconds says little."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchConfig:
    """How long each measurement is, and how often it is repeated."""

    new_tokens: int = 128
    """Of every row; a multiple of `CHUNK`, so that no step is thrown away."""
    repeats: int = 5
    """Turns; ≥ 1."""
    num_samples: int = 1
    """Of each prompt, where strengths share rows; ≥ 1."""
    stop: tuple[str, ...] = ()
    """What ends a completion there."""

    def __post_init__(self):
        check_count("repeats", self.repeats)
        check_count("num_samples", self.num_samples)
        check_count("new_tokens", self.new_tokens)
        if self.new_tokens % CHUNK:
            raise ValueError(f"new_tokens: expected a multiple of {CHUNK}, got {self.new_tokens}")


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that runs `run`, which waits for its own results, and returns the seconds."""

    def measured() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measured


def interleave(
    functions: Mapping[str, Callable[[], float]], repeats: int, progress: Progress = lambda line: None
) -> dict[str, dict]:
    """Returns, by name, `first`, the seconds with compilation, and `spread`'s figures of the repeats.

    Args:
      functions: each returns the seconds it took; all of them run in every turn, in this order.
      repeats: turns after the first call; ≥ 1.
    """
    first = {}
    for name, function in functions.items():
        progress(f"first call of {name}")
        first[name] = function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        progress(f"repeat {turn + 1} of {repeats}")
        for name, function in functions.items():
            seconds[name].append(_mean_seconds(function))
    return {name: {"first": first[name], **spread(values)} for name, values in seconds.items()}


def _mean_seconds(function: Callable[[], float]) -> float:
    """Returns the mean of as many calls as fill `LEAST_SECONDS`."""
    taken = [function()]
    while sum(taken) < LEAST_SECONDS:
        taken.append(function())
    return statistics.fmean(taken)


def spread(values: Sequence[float]) -> dict:
    """Returns the median, the range and the values themselves."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def ratio(slower: dict, faster: dict) -> dict:
    """Returns the spread of `slower` / `faster`, formed turn by turn."""
    return spread([s / f for s, f in zip(slower["values"], faster["values"], strict=True)])
