"""What sharing saves: prefills and tokens among strengths, slots among completions, weights among models.

Both sides are ours and make the same completions; they take turns in one run, as in `bench`.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import Draw, complete, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import CHUNK
from dera_jax.devices.usage import Usage
from dera_jax.models.trees import flatten, unflatten
from dera_jax.performance.bench.sides import LAMBDA, complete_all, make_prompt, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, timed
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import Policy, with_params

STRENGTHS = tuple(i / 5 for i in range(11))
LONG_PROMPT, SHORT_COMPLETION, LONG_ROWS = 384, 64, 16
"""Tokens and rows (one for each prompt), where strengths are compared."""
LONGEST, SKEWED_ROWS = 224, 32
"""Tokens of a completion and rows, where slots are compared; most completions are much shorter."""
SAMPLES = 96
RANK = 8
SHARED = {
    "11": (STRENGTHS, 1.5),
    "41": (tuple(i / 20 for i in range(41)), 3.0),
    "3 far apart": ((0.0, 5.0, 10.0), 0.97),
}
"""Strengths that share rows, and how many times as fast as without sharing they are to be."""
SHARE_PROMPTS, SHARE_ROWS = 64, 32
STRENGTHS_TARGET, REFILL_TARGET, UTILIZATION_TARGET, LORA_TARGET = 1.3, 1.5, 0.9, 1.15


def bench_strengths(policies: Sequence[Policy], config: BenchConfig, progress: Progress = print) -> dict:
    """Returns the time of a sweep of 11 strengths against 11 runs of one strength each, at equal rows.

    A sweep prefills every prompt once. Every strength has rows of its own: see `bench_share`.
    """
    policies, numbers = without_eos(policies), np.random.default_rng(0)
    vocab = min(len(policy.tokenizer) for policy in policies)
    prompts = []
    for number in range(LONG_ROWS):
        ids = tuple(numbers.integers(vocab, size=LONG_PROMPT).tolist())
        prompts.append(EncodedPrompt(Prompt(number, "random words"), (ids,) * len(policies)))
    each = [[Request(prompt, 0, (strength,)) for prompt in prompts] for strength in STRENGTHS]
    together = [request for requests in zip(*each, strict=True) for request in requests]
    alone = partial(complete_all, draw=complete_unshared)
    runs = {
        "sweep": timed(lambda: alone(policies, together, LONG_ROWS, SHORT_COMPLETION)),
        "runs": timed(lambda: [alone(policies, c, LONG_ROWS, SHORT_COMPLETION) for c in each]),
    }
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "strengths": list(STRENGTHS),
        "prompts": LONG_ROWS,
        "prompt_tokens": LONG_PROMPT,
        "new_tokens": SHORT_COMPLETION,
        "rows": LONG_ROWS,
        "seconds": seconds,
        "times_runs": ratio(seconds["runs"], seconds["sweep"]),
        "target": STRENGTHS_TARGET,
    }


def bench_share(
    policies: Sequence[Policy],
    prompts: Sequence[EncodedPrompt],
    config: BenchConfig,
    progress: Progress = print,
) -> Iterator[dict]:
    """Yields for each set of strengths the time of rows that they share against rows of their own."""
    decode = DecodeConfig(max_new_tokens=config.new_tokens, stop=config.stop)
    cells = [(prompt, sample) for prompt in prompts for sample in range(config.num_samples)]
    for name, (strengths, target) in SHARED.items():
        requests = [Request(*cell, (strength,)) for cell in cells for strength in strengths]
        usage = {"shared": Usage(), "unshared": Usage()}

        def run(draw: Draw, usage: Usage, requests: Sequence[Request] = requests) -> None:
            made = draw(policies, requests, decode, SHARE_ROWS, usage=usage)
            assert len(list(made)) == len(requests)

        runs = {
            "shared": timed(partial(run, complete, usage["shared"])),
            "unshared": timed(partial(run, complete_unshared, usage["unshared"])),
        }
        seconds = interleave(runs, config.repeats, progress)
        yield {
            "model": policies[-1].name,
            "strengths": list(strengths),
            "name": name,
            "completions": len(requests),
            "rows": SHARE_ROWS,
            "tokens_for_each_drawn": usage["shared"].tokens / usage["shared"].row_tokens,
            "times_steps": usage["unshared"].slot_steps / usage["shared"].slot_steps,
            "seconds": seconds,
            "times_unshared": ratio(seconds["unshared"], seconds["shared"]),
            "target": target,
        }


def bench_refill(
    policies: Sequence[Policy],
    prompts: Sequence[EncodedPrompt],
    config: BenchConfig,
    progress: Progress = print,
) -> dict:
    """Returns the time of refilled slots against batches that wait for their longest completion.

    Completions end with a line, so that their lengths differ as they do.
    """
    decode = DecodeConfig(max_new_tokens=LONGEST, stop=("\n",))
    requests = [Request(prompt, sample, (LAMBDA,)) for prompt in prompts for sample in range(SAMPLES)]
    batches = [requests[start : start + SKEWED_ROWS] for start in range(0, len(requests), SKEWED_ROWS)]
    usage = Usage()
    lengths = [len(c.tokens) for c in complete(policies, requests, decode, SKEWED_ROWS, usage=usage)]
    mean = float(np.mean(lengths))
    ceiling = mean / (mean + CHUNK / 2)

    def run(parts) -> None:
        for part in parts:
            assert len(list(complete(policies, part, decode, SKEWED_ROWS))) == len(part)

    runs = {"refilled": timed(lambda: run([requests])), "fixed": timed(lambda: run(batches))}
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "cells": len(requests),
        "rows": SKEWED_ROWS,
        "mean_length": mean,
        "longest": max(lengths),
        "utilization": usage.share,
        "utilization_ceiling": ceiling,
        "of_ceiling": usage.share / ceiling,
        "seconds": seconds,
        "times_fixed": ratio(seconds["fixed"], seconds["refilled"]),
        "target": REFILL_TARGET,
        "of_ceiling_target": UTILIZATION_TARGET,
    }


def bench_shared_base(
    policies: Sequence[Policy], rows: int, config: BenchConfig, progress: Progress = print
) -> dict:
    """Returns the time of a base mixed with an adapter on it against the base alone at twice the rows."""
    (base,) = without_eos(policies[:1])
    adapted = with_lora(base, RANK, 2.0 * RANK)
    numbers = np.random.default_rng(0)
    moved = {
        path: value + numbers.normal(0, 0.01, value.shape).astype(value.dtype)
        if path.endswith("lora_b")
        else value
        for path, value in flatten(adapted.params).items()
    }
    pair = base, with_params(adapted, unflatten(moved))
    prompt = make_prompt(pair, config.new_tokens)
    alone = EncodedPrompt(prompt.prompt, prompt.tokens[:1])
    mixed = [Request(prompt, sample, (LAMBDA,)) for sample in range(rows)]
    single = [Request(alone, sample, ()) for sample in range(2 * rows)]
    runs = {
        "mixed": timed(lambda: complete_all(pair, mixed, rows, config.new_tokens)),
        "single": timed(lambda: complete_all((base,), single, 2 * rows, config.new_tokens)),
    }
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": base.name,
        "rows": rows,
        "rank": RANK,
        "seconds": seconds,
        "mixed_to_single": ratio(seconds["mixed"], seconds["single"]),
        "target": LORA_TARGET,
    }
