"""What drafting ahead gains: the same completions, with tokens drafted and checked several at a time, and without."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding.complete import Draw, MixtureDraw, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.drafters import acceptance_bounds
from dera_jax.decoding.request import Completion, Request
from dera_jax.devices.usage import Usage
from dera_jax.performance.bench.sides import LAMBDA, make_prompt, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, timed
from dera_jax.policies.policy import Policy, with_params

LENGTH = 4
DISTURBED = (0.01, 0.03, 0.3)
"""How far the second of two random models is from the first: standard deviations of the factors of its weights."""
MANY_ROWS = 32
PROMPTS = 4
AUTO_TARGET, NGRAM_TARGET = 0.95, 1.3
TARGETS = ((0.95, 1.2), (0.9, 1.1))
"""Shares of the drafts that are accepted, and how many times as fast as plain steps a row is to be from there on."""


def bench_random(
    policies: Sequence[Policy], config: BenchConfig, progress: Progress = print
) -> Iterator[dict]:
    """Yields the times of one row of random models, near and far from each other, and of many rows left to auto."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    bench = partial(_bench, config=config, progress=progress)
    for size in DISTURBED:
        near = policies[0], disturbed(policies[0], size)
        title = f"disturbed by {size:g}"
        yield bench(near, [Request(prompt, 0, (LAMBDA,))], title, 1, ("reference", "auto"))
    many = [Request(prompt, sample, (LAMBDA,)) for sample in range(MANY_ROWS)]
    yield bench(policies, many, "of different seeds", MANY_ROWS, ("auto",))
    yield bench(policies, many[:1], "greedy, which repeats itself", 1, ("ngram", "auto"), temperature=0.0)


def bench_prompts(
    policies: Sequence[Policy],
    prompts: Sequence[EncodedPrompt],
    config: BenchConfig,
    progress: Progress = print,
) -> Iterator[dict]:
    """Yields the times of a few prompts, one row at a time, by each drafter."""
    requests = [Request(prompt, 0, (LAMBDA,)) for prompt in prompts]
    for temperature in (1.0, 0.0):
        drafters = ("reference", "ngram", "auto")
        title = "greedy" if temperature == 0 else "sampled"
        yield _bench(policies, requests, title, 1, drafters, config, progress, temperature)


def disturbed(policy: Policy, size: float) -> Policy:
    """Returns a policy whose matrices are another's, each weight by a factor near 1."""
    noise = np.random.default_rng(0)

    def moved(array):
        factors = 1 + size * noise.standard_normal(array.shape).astype(array.dtype)
        return array * factors if array.ndim > 1 else array

    return with_params(policy, jax.tree.map(moved, policy.params))


def _bench(
    policies: Sequence[Policy],
    requests: Sequence[Request],
    title: str,
    rows: int,
    drafters: Sequence[str],
    config: BenchConfig,
    progress: Progress,
    temperature: float = 1.0,
) -> dict:
    decode = DecodeConfig(max_new_tokens=config.new_tokens, temperature=temperature)

    def run(draw: Draw, usage: Usage | None = None) -> list[Completion]:
        return list(draw(policies, requests, decode, rows, usage=usage))

    draws = {name: MixtureDraw(draft=name, draft_length=LENGTH) for name in drafters}
    usage = {name: Usage() for name in drafters}
    for name, draw in draws.items():
        run(draw, usage[name])
    plain = run(complete_unshared)
    runs = {"plain": timed(partial(run, complete_unshared))}
    runs |= {name: timed(partial(run, draw)) for name, draw in draws.items()}
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "title": title,
        "rows": rows,
        "draft_length": LENGTH,
        "tokens": sum(len(done.tokens) for done in plain),
        "bounds": _bounds(plain),
        "accepted": {name: used.acceptance for name, used in usage.items()},
        "drafts": {name: used.drafts for name, used in usage.items()},
        "seconds": seconds,
        "times_plain": {name: ratio(seconds["plain"], seconds[name]) for name in drafters},
        "targets": {name: _target(name, usage[name].acceptance) for name in drafters},
    }


def _bounds(plain: Sequence[Completion]) -> tuple[float, float]:
    """Returns between what shares of the reference's drafts are accepted, as the tokens of plain steps tell."""
    each = zip(*((done.logprobs, done.model_logprobs[:, 0]) for done in plain), strict=True)
    return acceptance_bounds(*map(np.concatenate, each))


def _target(drafter: str, accepted: float) -> float | None:
    if drafter == "auto":
        return AUTO_TARGET
    if drafter == "ngram":
        return NGRAM_TARGET if accepted >= TARGETS[-1][0] else None
    return next((target for least, target in TARGETS if accepted >= least), None)
