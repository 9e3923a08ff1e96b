"""Speed as ratios: mixing against one model, against bare forward passes, and against torch.

Machines differ and neighbours make noise, so nothing is compared across runs: what is compared
takes turns within one, and the ratio is formed within each turn. Every row makes exactly
`new_tokens` tokens: EOS ends nothing, on neither side.
"""

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from dera_jax import models
from dera_jax.data import buckets
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import CHUNK
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, Entries, empty_state, fill_slots
from dera_jax.performance.bench.sides import LAMBDA, complete_all, make_prompt, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, spread, timed
from dera_jax.policies.policy import Policy
from dera_jax.realign import strength_weights
from dera_jax.rules.rule import linear_rule

AGREEMENT_STEPS = 16
"""Greedy tokens compared between the two sides."""
# A sweep, and how much of the torch loop is measured; the rest is counted in.
SWEEP_STRENGTHS = tuple(i / 5 for i in range(11))
SWEEP_PROMPTS = 8
SWEEP_SAMPLES = 4
SWEEP_ROWS = 32
TIMED_STRENGTHS = 3
TIMED_PROMPTS = 2
DECODE_TARGETS = {1: 2.0, 32: 3.0}
"""Least ratio to torch, by rows."""
OVERHEAD_TARGET = 1.1
"""Largest ratio of a whole step to the forward passes in it."""
SWEEP_TARGET = 10.0
"""Least ratio to the torch loop."""


# Decoding: one model, the mixture, the mixture on torch
def bench_decode(
    policies: Sequence[Policy], rows: int, config: BenchConfig, torch_pair=None, progress: Progress = print
) -> dict:
    """Returns tokens per second of one model and of the mixture, and the ratio to torch.

    Timed from the ids of one prompt to `rows` completions: prefill included, on both sides.

    Args:
      torch_pair: `torch_baseline.TorchPair` of the same models; None leaves it out.
    """
    policies, new_tokens = without_eos(policies), config.new_tokens
    prompt = make_prompt(policies, new_tokens)
    ids = np.tile(prompt.tokens[0], (rows, 1))
    # One model is a tuple of one, and its weight is 1 − Σλ over no strengths.
    alone = EncodedPrompt(prompt.prompt, prompt.tokens[-1:])
    single = [Request(alone, sample, ()) for sample in range(rows)]
    mixed = [Request(prompt, sample, (LAMBDA,)) for sample in range(rows)]
    result: dict[str, Any] = {"model": policies[-1].name, "rows": rows}
    runs = {
        "single": timed(lambda: complete_all(policies[-1:], single, rows, new_tokens)),
        "mixed": timed(lambda: complete_all(policies, mixed, rows, new_tokens)),
    }
    if torch_pair is not None:
        progress("choosing torch's threads")
        short = timed(lambda: torch_pair.generate(ids, LAMBDA, new_tokens // 4))
        result["torch_threads"] = torch_pair.choose_threads(short)
        result["torch_prefill_seconds"] = timed(lambda: torch_pair.generate(ids, LAMBDA, 1))()
        result["greedy_agreement"] = greedy_agreement(policies, prompt, torch_pair)
        runs["torch"] = timed(lambda: torch_pair.generate(ids, LAMBDA, new_tokens))
    result["seconds"] = seconds = interleave(runs, config.repeats, progress)
    result["tokens_per_second"] = {
        name: spread([rows * new_tokens / s for s in figures["values"]]) for name, figures in seconds.items()
    }
    result["mixed_to_single"] = ratio(seconds["mixed"], seconds["single"])
    if torch_pair is not None:
        result["times_torch"] = ratio(seconds["torch"], seconds["mixed"])
        result["target"] = DECODE_TARGETS.get(rows)
    return result


def greedy_agreement(policies: Sequence[Policy], prompt: EncodedPrompt, torch_pair) -> dict:
    """Returns how many greedy tokens at `LAMBDA` are the same on both sides before the first other."""
    (ours,) = complete_all(policies, [Request(prompt, 0, (LAMBDA,))], 1, AGREEMENT_STEPS, temperature=0.0)
    ids = np.array([prompt.tokens[0]])
    (theirs,) = torch_pair.generate(ids, LAMBDA, AGREEMENT_STEPS, greedy=True).tolist()
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))
    return {"same": same, "steps": AGREEMENT_STEPS, "ours": ours, "torch": theirs}


# Overhead: the whole step against the forward passes in it


# Static: configs, steps. Traced: the rest, as in `device_loop.decode_chunk`.
@partial(jax.jit, static_argnames=("configs", "steps"), donate_argnames="state")
def forward_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    *,
    steps: int,
) -> tuple[DecodeState, Int[Array, "steps rows"]]:
    """Returns `decode_chunk` without rule, draw and statistics: the forward passes and their caches alone.

    The next token is made of each model's largest logit, the cheapest figure that all logits enter:
    the compiler can leave out no word of the head, and no pass can start before the last has ended.
    """
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]

    def step(state, recent):
        logits, recent = device_loop.forward_step(bound, state, recent)
        largest = logits.max(axis=-1).sum(axis=0)
        token = jnp.abs(largest.astype(jnp.int32)) % configs[0].vocab_size
        tokens = jnp.broadcast_to(token, state.token.shape)
        return state._replace(token=tokens, position=state.position + 1), recent, token

    return device_loop.scan_steps(step, state, steps)


def bench_overhead(
    policies: Sequence[Policy], rows: int, config: BenchConfig, progress: Progress = print
) -> dict:
    """Returns what mixing, statistics and the draw add to both models' forward passes."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    configs, params = tuple(p.config for p in policies), tuple(p.params for p in policies)
    options = {"sampling": Sampling.create(), "eos": jnp.zeros(0, jnp.int32), "rule": linear_rule}
    whole = partial(device_loop.decode_chunk, configs, params, steps=CHUNK, **options)
    forwards = partial(forward_chunk, configs, params, steps=CHUNK)

    def measured(chunk) -> float:
        state = jax.block_until_ready(_filled(configs, params, prompt.tokens[0], rows, config.new_tokens))
        start = time.perf_counter()
        for _ in range(config.new_tokens // CHUNK):
            state, drawn = chunk(state)
            jax.device_get(drawn)
        return time.perf_counter() - start

    functions = {"whole": partial(measured, whole), "forwards": partial(measured, forwards)}
    seconds = interleave(functions, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "rows": rows,
        "seconds": seconds,
        "whole_to_forwards": ratio(seconds["whole"], seconds["forwards"]),
        "target": OVERHEAD_TARGET,
    }


def _filled(configs, params, ids: Sequence[int], rows: int, new_tokens: int) -> DecodeState:
    """Returns a state with the prompt `ids` in every row."""
    count, key = len(configs), jax.random.key(0)
    tokens, mask = buckets.pad_left(ids[:-1], buckets.bucket_length(len(ids) - 1))
    last = np.full((count, 1), ids[-1], np.int32)
    prefilled = device_loop.prefill_prompts(configs, params, (tokens,) * count, (mask,) * count, last)
    room = tuple(models.whole_blocks(cache.mask.shape[1] + new_tokens) for cache in prefilled.caches)
    state = empty_state(configs, prefilled, rows, room, key, linear_rule)
    entries = Entries(
        slots=np.arange(rows, dtype=np.int32),
        weights=strength_weights(np.full((rows, count - 1), LAMBDA)),
        seeds=np.tile(jax.random.key_data(key), (rows, 1)),
        prompt_hash=np.uint32(0),
        samples=np.arange(rows, dtype=np.uint32),
        attempts=np.zeros(rows, np.uint32),
    )
    return fill_slots(state, prefilled, 0, entries, rule=linear_rule)


# A sweep: many strengths in one batch against a loop over prompts and strengths
def bench_sweep(
    policies: Sequence[Policy],
    prompts: Sequence[EncodedPrompt],
    config: BenchConfig,
    torch_pair=None,
    progress: Progress = print,
) -> dict:
    """Returns the time of a sweep, and the ratio to a loop that calls torch per prompt and strength.

    All requests of the loop take the same time but for the prompt's length, so a part of them,
    spread over strengths and prompts, is measured and the sum is scaled by their number.
    """
    policies, new_tokens = without_eos(policies), config.new_tokens
    points = itertools.product(prompts, range(SWEEP_SAMPLES), SWEEP_STRENGTHS)
    requests = [Request(prompt, sample, (lambda_,)) for prompt, sample, lambda_ in points]
    all_calls = len(prompts) * len(SWEEP_STRENGTHS)
    calls = [
        (p, s) for p in _spaced(prompts, TIMED_PROMPTS) for s in _spaced(SWEEP_STRENGTHS, TIMED_STRENGTHS)
    ]

    def loop(calls) -> None:
        for prompt, lambda_ in calls:
            torch_pair.generate(np.array([prompt.tokens[0]]), lambda_, new_tokens, samples=SWEEP_SAMPLES)

    result: dict[str, Any] = {
        "model": policies[-1].name,
        "strengths": list(SWEEP_STRENGTHS),
        "prompts": len(prompts),
        "samples": SWEEP_SAMPLES,
        "rows": SWEEP_ROWS,
    }
    runs = {"ours": timed(lambda: complete_all(policies, requests, SWEEP_ROWS, new_tokens))}
    if torch_pair is not None:
        progress("choosing torch's threads")
        result["torch_threads"] = torch_pair.choose_threads(timed(lambda: loop(calls[:1])))
        runs["torch_timed"] = timed(lambda: loop(calls))
    result["seconds"] = seconds = interleave(runs, config.repeats, progress)
    if torch_pair is not None:
        seconds["torch"] = spread([s * all_calls / len(calls) for s in seconds["torch_timed"]["values"]])
        result["torch_calls"] = {"all": all_calls, "timed": len(calls)}
        result["times_torch"] = ratio(seconds["torch"], seconds["ours"])
        result["target"] = SWEEP_TARGET
    return result


def _spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Returns up to `count` items, the first and the last among them, at even distances."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
