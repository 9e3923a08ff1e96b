"""What a guided search costs: draws that look at several candidates, against the plain draw."""

from collections.abc import Iterator, Sequence
from functools import partial

from dera_jax.decoding.complete import Draw, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
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


def bench(policies: Sequence[Policy], config: BenchConfig, progress: Progress = print) -> Iterator[dict]:
    """Yields the times of one completion by each search, and of the best of eight against eight samples."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    one = [Request(prompt, 0, (LAMBDA,))]
    eight = [Request(prompt, sample, (LAMBDA,)) for sample in range(CANDIDATES)]
    yield _measured(policies, one, one, 1, ONE_ROW, "one completion", config, progress)
    yield _measured(policies, eight, one, CANDIDATES, SAMPLES, f"{CANDIDATES} samples", config, progress)


def _measured(
    policies: Sequence[Policy],
    plain: Sequence[Request],
    asked: Sequence[Request],
    rows: int,
    targets: dict[str, float | None],
    title: str,
    config: BenchConfig,
    progress: Progress,
) -> dict:
    decode = DecodeConfig(max_new_tokens=config.new_tokens)

    def run(draw: Draw, requests: Sequence[Request], rows: int) -> list[Completion]:
        return list(draw(policies, requests, decode, rows))

    draws = {name: parse_draw(name, complete_unshared) for name in targets}
    for draw in draws.values():
        run(draw, asked, CANDIDATES)
    run(complete_unshared, plain, rows)
    runs = {"plain": timed(partial(run, complete_unshared, plain, rows))}
    runs |= {name: timed(partial(run, draw, asked, CANDIDATES)) for name, draw in draws.items()}
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "title": title,
        "tokens": config.new_tokens * len(plain),
        "seconds": seconds,
        "times_plain": {name: ratio(seconds[name], seconds["plain"]) for name in draws},
        "targets": targets,
    }
