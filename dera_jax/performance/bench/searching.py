"""What draws that look at several candidates or tries cost, against the plain draw."""

from collections.abc import Iterator, Sequence
from functools import partial

from dera_jax.decoding.complete import Draw, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
from dera_jax.exact.particles import Particles
from dera_jax.exact.rejection import Rejection
from dera_jax.performance.bench.sides import LAMBDA, make_prompt, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, timed
from dera_jax.policies.policy import Policy
from dera_jax.search.parsing import parse_draw

SCORE = "length:40:60*0.1+log-ratio"
ONE_ROW = {f"lookahead:8:16:8:{SCORE}": 5.0, f"lookahead:8:16:1:{SCORE}": 35.0, f"blocks:8:8:{SCORE}": None}
"""Draws of one completion -> how many times the plain draw's time it may take."""
SAMPLES = {f"best-of:8:{SCORE}": 1.3}
"""Draws that are held against as many samples as they have candidates."""
CANDIDATES = 8
EXACT_ROWS = 32
EXACT = 1.03
"""At λ = 1, where every try is accepted: recording weights and looking at them, times the plain draw's time."""
POPULATION = 1.05
"""A population of as many as there are rows, times the time of that many samples."""


def bench(policies: Sequence[Policy], config: BenchConfig, progress: Progress = print) -> Iterator[dict]:
    """Yields the times of one completion by each search, and of the best of eight against eight samples."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    one = [Request(prompt, 0, (LAMBDA,))]
    eight = [Request(prompt, sample, (LAMBDA,)) for sample in range(CANDIDATES)]
    first, second = (
        {name: (parse_draw(name, complete_unshared), target) for name, target in targets.items()}
        for targets in (ONE_ROW, SAMPLES)
    )
    yield _measured(policies, one, one, (1, CANDIDATES), first, "one completion", config, progress)
    yield _measured(
        policies, eight, one, (CANDIDATES,) * 2, second, f"{CANDIDATES} samples", config, progress
    )


def bench_exact(
    policies: Sequence[Policy], config: BenchConfig, progress: Progress = print
) -> Iterator[dict]:
    """Yields the times of exact draws that do the work of plain ones, against those: what looking at weights takes."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    aligned, halfway = (
        [Request(prompt, sample, (strength,)) for sample in range(EXACT_ROWS)] for strength in (1.0, LAMBDA)
    )
    rows, title = (EXACT_ROWS,) * 2, f"{EXACT_ROWS} samples"
    accepted = {"exact": (Rejection(limit_means="absorb"), EXACT)}
    yield _measured(policies, aligned, aligned, rows, accepted, f"{title} at λ = 1", config, progress)
    population = {f"particles:{EXACT_ROWS}": (Particles(n=EXACT_ROWS, limit_means="absorb"), POPULATION)}
    yield _measured(policies, halfway, halfway[:1], rows, population, title, config, progress)


def _measured(
    policies: Sequence[Policy],
    plain: Sequence[Request],
    asked: Sequence[Request],
    rows: tuple[int, int],
    draws: dict[str, tuple[Draw, float | None]],
    title: str,
    config: BenchConfig,
    progress: Progress,
) -> dict:
    """Returns the times of draws against the plain one.

    Args:
      rows: of the plain draw, and of the others.
      draws: by name, each with the most that it may take of the plain draw's time.
    """
    decode = DecodeConfig(max_new_tokens=config.new_tokens)

    def run(draw: Draw, requests: Sequence[Request], rows: int) -> list[Completion]:
        return list(draw(policies, requests, decode, rows))

    for draw, _ in draws.values():
        run(draw, asked, rows[1])
    run(complete_unshared, plain, rows[0])
    runs = {"plain": timed(partial(run, complete_unshared, plain, rows[0]))}
    runs |= {name: timed(partial(run, draw, asked, rows[1])) for name, (draw, _) in draws.items()}
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "title": title,
        "tokens": config.new_tokens * len(plain),
        "seconds": seconds,
        "times_plain": {name: ratio(seconds[name], seconds["plain"]) for name in draws},
        "targets": {name: target for name, (_, target) in draws.items()},
    }
